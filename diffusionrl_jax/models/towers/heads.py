"""Applies linear heads to what the towers say, and gives the shapes of the heads' parameters."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp


def dense_template(inputs: int, outputs: int) -> dict:
    """Returns the shapes of a linear layer's parameters, {"kernel", "bias"}."""
    return {
        "kernel": jax.ShapeDtypeStruct((inputs, outputs), jnp.float32),
        "bias": jax.ShapeDtypeStruct((outputs,), jnp.float32),
    }


def dense(params: Mapping, inputs: jax.Array) -> jax.Array:
    """Computes inputs @ kernel + bias, from [..., inputs] to [..., outputs]."""
    return inputs @ params["kernel"] + params["bias"]


def stack_template(widths: Sequence[int]) -> dict:
    """Returns the shapes of a stack of linear layers without activations.

    Args:
      widths: the widths of the input, of the hidden layers and of the output.

    Returns:
      {"layers_0": ..., "layers_2": ...}, by the numbers of ImageReward.pt and of LAION's aesthetic
      head. These have dropout at the numbers left out, and none before the last layer.
    """
    count = len(widths) - 1
    numbers = [*range(0, 2 * count - 2, 2), max(0, 2 * count - 3)]
    sizes = zip(numbers, widths[:-1], widths[1:], strict=True)
    return {f"layers_{number}": dense_template(*size) for number, *size in sizes}


def stack(params: Mapping, inputs: jax.Array) -> jax.Array:
    """Applies the layers of `stack_template` in turn, from [..., inputs] to [..., outputs].

    Args:
      params: a tree that holds the layers. Other entries are ignored.
      inputs: [..., inputs].
    """
    names = [name for name in params if name.startswith("layers_")]
    for name in sorted(names, key=lambda name: int(name.removeprefix("layers_"))):
        inputs = dense(params[name], inputs)
    return inputs
