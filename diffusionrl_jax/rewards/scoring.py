"""How every reward is asked on the devices, in training and in evaluations."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.mistakes.code import without_exit
from diffusionrl_jax.rewards import Reward
from diffusionrl_jax.rewards.weighted_sum import WeightedSum


def score(reward: Reward, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
    """A reward's scores, and none where there is no picture.

    A pixel that is NaN or infinite would become some number like any other in many rewards (the
    size of a file, the class of a face). Where a reward compares a group's pictures, one that is
    none leaves the whole group without a score: what it would have added is not known.

    Args:
      reward: any.
      params, images, inputs: as of `Reward.__call__`; a reward of groups gets whole ones.

    Returns:
      float32 [n]: the reward's, to the bit, for finite pictures; NaN for the others.

    Raises:
      UserError: the reward gives something else than one number an image.
    """
    with without_exit(f"The reward {type(reward).__name__}"):
        scores = jnp.asarray(reward(params, images, inputs))
    if scores.shape != images.shape[:1]:
        raise UserError(
            f"The reward {type(reward).__name__} gave scores of shape {scores.shape} for "
            f"{len(images)} images: it must give one number an image."
        )
    group_size = _group_size(reward)
    finite = jnp.isfinite(images).all((1, 2, 3)).reshape(-1, group_size).all(1)
    return jnp.where(jnp.repeat(finite, group_size), scores.astype(jnp.float32), jnp.nan)


def _group_size(reward: Reward) -> int:
    """How many neighbours a reward, or a part of it, compares; 1 if it takes each by itself."""
    if isinstance(reward, WeightedSum):
        return math.lcm(*map(_group_size, reward.rewards.values()))
    return getattr(reward, "group_size", 1) if getattr(reward, "compares_pictures", True) else 1
