"""Linear heads on the towers: the shapes of their parameters, and their application."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp


def dense_template(inputs: int, outputs: int) -> dict:
    """Shapes of a linear layer's parameters: {"kernel", "bias"}."""
    return {
        "kernel": jax.ShapeDtypeStruct((inputs, outputs), jnp.float32),
        "bias": jax.ShapeDtypeStruct((outputs,), jnp.float32),
    }


def dense(params: Mapping, inputs: jax.Array) -> jax.Array:
    """inputs [..., inputs] @ kernel + bias: [..., outputs]."""
    return inputs @ params["kernel"] + params["bias"]


def stack_template(widths: Sequence[int]) -> dict:
    """Shapes of a stack of linear layers without activations.

    Args:
      widths: of the input, the hidden layers and the output.

    Returns:
      {"layers_0": ..., "layers_2": ...}, by the numbers of ImageReward.pt and of LAION's aesthetic
      head: these have dropout at the numbers left out, and none before the last layer.
    """
    count = len(widths) - 1
    numbers = [*range(0, 2 * count - 2, 2), max(0, 2 * count - 3)]
    sizes = zip(numbers, widths[:-1], widths[1:], strict=True)
    return {f"layers_{number}": dense_template(*size) for number, *size in sizes}


def stack(params: Mapping, inputs: jax.Array) -> jax.Array:
    """Applies the layers of `stack_template` in turn: [..., inputs] to [..., outputs].

    Args:
      params: holds the layers; other entries are ignored.
      inputs: [..., inputs].
    """
    names = [name for name in params if name.startswith("layers_")]
    for name in sorted(names, key=lambda name: int(name.removeprefix("layers_"))):
        inputs = dense(params[name], inputs)
    return inputs
