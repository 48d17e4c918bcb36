"""Asks any reward on the devices, in training and in evaluations."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.mistakes.code import named_errors, without_exit
from diffusionrl_jax.rewards import Reward
from diffusionrl_jax.rewards.host_reward import host_rewards
from diffusionrl_jax.rewards.weighted_sum import WeightedSum


def score(reward: Reward, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
    """Returns a reward's scores, with NaN where there is no picture to score.

    Many rewards would turn a pixel that is NaN or infinite into some ordinary number (the size of a
    file, the class of a face). Where a reward compares a group's pictures, one such picture leaves
    the whole group without a score: what it would have added is not known.

    Args:
      reward: any reward.
      params, images, inputs: as in `Reward.__call__`. A reward that compares groups gets whole
        ones.

    Returns:
      float32 [n]: exactly the reward's scores for finite pictures, NaN for the others.

    Raises:
      UserError: the reward gives anything but one number for each image.
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


def check_shapes(
    reward: Reward, params: Mapping, image_shape: tuple[int, int, int], prompts: Sequence[str]
) -> None:
    """Refuses a reward whose arrays do not fit: nothing is computed.

    Args:
      reward: any, on the host or not.
      params: its parameters.
      image_shape: [height, width, 3] of a picture.
      prompts: one a picture; whole groups.

    Raises:
      UserError: what it prepares is no mapping of arrays with a row a prompt, what it gives is not
        one number an image, or it raises.
    """
    kind = type(reward).__name__
    with named_errors(f"{kind}.prepare failed", "mend it"):
        inputs = reward.prepare(prompts)
    count = len(prompts)
    if not isinstance(inputs, Mapping):
        raise UserError(
            f"{kind}.prepare gave a {type(inputs).__name__}: it must give arrays by name, {{}} if "
            "it needs none."
        )
    for field, rows in inputs.items():
        if np.shape(rows)[:1] != (count,):
            raise UserError(
                f"{kind}.prepare gave {field!r} of shape {np.shape(rows)} for {count} prompts: it "
                "must have a row a prompt."
            )
    asked = dict.fromkeys(host_rewards(reward), jax.ShapeDtypeStruct((count,), jnp.float32))
    images = jax.ShapeDtypeStruct((count, *image_shape), jnp.float32)
    with named_errors(f"{kind} cannot score", "mend its __call__"):
        jax.eval_shape(partial(score, reward), params, images, dict(inputs) | asked)


def _group_size(reward: Reward) -> int:
    """Returns how many neighbours a reward, or a part of it, compares; 1 if it compares none."""
    if isinstance(reward, WeightedSum):
        return math.lcm(reward.normalised_by or 1, *map(_group_size, reward.rewards.values()))
    return getattr(reward, "group_size", 1) if getattr(reward, "compares_pictures", True) else 1
