"""Human preference as PickScore scores it, for the prompts of DiffusionDB."""

import ml_collections

from configs import worlds


def get_config(world: str = worlds.STABLE_DIFFUSION_2) -> ml_collections.ConfigDict:
    return worlds.get_config(world, stable_diffusion="pick_score", emoji="preference")
