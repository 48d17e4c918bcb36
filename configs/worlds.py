"""The same tasks in several worlds: Stable Diffusion, FLUX, and the embedded emoji."""

import ml_collections

from configs import (
    emoji_flow,
    emoji_policy_gradient,
    stable_diffusion_2,
    stable_diffusion_xl,
    transformers,
)
from diffusionrl_jax.mistakes import UserError

STABLE_DIFFUSION_2 = "stable_diffusion_2"
EMOJI = {"emoji": emoji_policy_gradient.get_config, "emoji_flow": emoji_flow.get_config}
WORLDS = {
    STABLE_DIFFUSION_2: stable_diffusion_2.get_config,
    "stable_diffusion_xl": stable_diffusion_xl.get_config,
    **transformers.WORLDS,
    **EMOJI,
}


def get_config(world: str, *, stable_diffusion: str, emoji: str) -> ml_collections.ConfigDict:
    """The config of a world.

    Args:
      world: as in `--config=configs/hps.py:emoji`.
      stable_diffusion, emoji: the names of the tasks to train on there, by commas.

    Raises:
      UserError: there is no such world.
    """
    if world not in WORLDS:
        raise UserError(f"There is no world {world!r}: choose from {', '.join(WORLDS)}.")
    return WORLDS[world](emoji if world in EMOJI else stable_diffusion)
