"""Pairs of objects, scored by a detector (Eq. 13, Table 4)."""

import ml_collections

from configs import worlds


def get_config(world: str = worlds.STABLE_DIFFUSION_2) -> ml_collections.ConfigDict:
    return worlds.get_config(world, stable_diffusion="compositionality", emoji="compositionality")
