"""The batches that an iteration's optimiser steps are taken on.

Axes: B samples, U updates.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Examples:
    """Batches for the denoiser, U in front; `text` is shared by the updates of one task.

    Attributes:
      latents: float32 [U, B, ...], what the denoiser is shown.
      times: [U, B], of the process.
      text: int32 [U], which row of the iteration's text.
      weight: float32 [U], of the loss.
      objective: int32 [U], whose loss it is, by its place among the objectives.
      own: what the objectives take besides, by name: arrays [U, B, ...].
    """

    latents: jax.Array
    times: jax.Array
    text: jax.Array
    weight: jax.Array
    objective: jax.Array
    own: Mapping[str, jax.Array]


def concatenate(parts: Sequence[Examples]) -> Examples:
    """Examples one after another; what an objective does not take of its own is zeros.

    Args:
      parts: of several objectives. Fields of one name have one shape but for U, and one dtype.
    """
    shapes = {name: field for part in parts for name, field in part.own.items()}

    def own(part, name, like):
        zeros = lambda: jnp.zeros((len(part.weight), *like.shape[1:]), like.dtype)
        return part.own[name] if name in part.own else zeros()

    parts = [
        dataclasses.replace(
            part, own={name: own(part, name, like) for name, like in shapes.items()}
        )
        for part in parts
    ]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
