"""Preference, compositionality and fairness at once (Sec. 3.3, Algorithm 1, Table 5)."""

import ml_collections

from configs import worlds


def get_config(world: str = worlds.STABLE_DIFFUSION_2) -> ml_collections.ConfigDict:
    return worlds.get_config(
        world,
        stable_diffusion="image_reward,compositionality,fairness",
        emoji="preference,compositionality,fairness",
    )
