"""Stable Diffusion XL at 1024 px, otherwise as the paper trains Stable Diffusion 2."""

import ml_collections

from configs import stable_diffusion_2


def get_config(tasks: str) -> ml_collections.ConfigDict:
    """The paper's tasks, as `configs/stable_diffusion_2.py` names them."""
    config = stable_diffusion_2.get_config(tasks)
    config.model = "stabilityai/stable-diffusion-xl-base-1.0"
    return config
