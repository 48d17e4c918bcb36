"""Portraits at work in all skin tones, scored by statistical parity (Eq. 12, Table 3)."""

import ml_collections

from configs import worlds


def get_config(world: str = worlds.STABLE_DIFFUSION_2) -> ml_collections.ConfigDict:
    return worlds.get_config(world, stable_diffusion="fairness", emoji="fairness")
