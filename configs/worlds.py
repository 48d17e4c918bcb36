"""The same tasks in two worlds: Stable Diffusion 2-base, and the embedded emoji."""

import ml_collections

from configs import emoji, stable_diffusion_2

STABLE_DIFFUSION_2 = "stable_diffusion_2"
WORLDS = {STABLE_DIFFUSION_2: stable_diffusion_2.get_config, "emoji": emoji.get_config}


def get_config(world: str, **tasks: str) -> ml_collections.ConfigDict:
    """The config of a world.

    Args:
      world: as in `--config=configs/hps.py:emoji`.
      **tasks: world -> the names of its tasks to train on, by commas.

    Raises:
      ValueError: there is no such world.
    """
    if world not in WORLDS:
        raise ValueError(f"There is no world {world!r}: choose from {', '.join(WORLDS)}.")
    return WORLDS[world](tasks[world])
