"""A 2D convolution whose kernel gradient is one matrix product for each row of the kernel.

XLA's CPU backend computes the gradient of a convolution's kernel slowly, and by a naive loop when
it lies inside `lax.scan`, about twenty times slower still. As matrix products the same gradient
runs at full speed in both places.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[int, int]
DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(
    inputs: jax.Array, kernel: jax.Array, strides: Pair, padding: tuple[Pair, Pair]
) -> jax.Array:
    """Computes a cross-correlation, as `lax.conv_general_dilated` does.

    Args:
      inputs: [batch, height, width, in].
      kernel: [kernel height, kernel width, in, out], of the inputs' dtype.
      strides: (vertical, horizontal), static.
      padding: ((top, bottom), (left, right)) zeros, static.

    Returns:
      [batch, height', width', out], of the inputs' dtype.
    """
    return lax.conv_general_dilated(
        inputs, kernel, strides, padding, dimension_numbers=DIMENSION_NUMBERS
    )


def _forward(inputs, kernel, strides, padding):
    return convolution(inputs, kernel, strides, padding), (inputs, kernel)


def _backward(strides, padding, residuals, cotangent):
    inputs, kernel = residuals
    return (
        _input_gradient(inputs, kernel, strides, padding, cotangent),
        _kernel_gradient(inputs, kernel, strides, padding, cotangent),
    )


def _input_gradient(inputs, kernel, strides, padding, cotangent):
    if strides == (1, 1):
        flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        back_padding = tuple(
            (size - 1 - before, size - 1 - after)
            for size, (before, after) in zip(kernel.shape[:2], padding, strict=True)
        )
        return convolution(cotangent, flipped, strides, back_padding)

    def strided(value):
        return lax.conv_general_dilated(
            value, kernel, strides, padding, dimension_numbers=DIMENSION_NUMBERS
        )

    _, transpose = jax.vjp(strided, inputs)
    return transpose(cotangent)[0]


def _kernel_gradient(inputs, kernel, strides, padding, cotangent):
    """Returns the kernel's gradient: for each row [in, positions] @ [positions, columns * out].

    A row of the kernel meets every strides[0]th row of the inputs, which lie together since rows
    come first. The cotangent is shifted once for each column and these are laid side by side, so
    that few values are copied and the products are wide. They are accumulated in float32.
    """
    height, width, channels, features = kernel.shape
    (top, bottom), (left, _) = padding
    columns = inputs.shape[2]
    rows = jnp.pad(inputs, ((0, 0), (top, bottom), (0, 0), (0, 0))).swapaxes(0, 1)
    # At x + left - k stands what column x of the inputs has given through the kernel's column k.
    spread = (cotangent.shape[2] - 1) * strides[1] + 1
    before = width - 1 - left
    zero = jnp.zeros((), cotangent.dtype)
    sides = (before, columns + left - spread, strides[1] - 1)
    shifted = lax.pad(cotangent, zero, ((0, 0, 0), (0, 0, 0), sides, (0, 0, 0)))
    first = lambda k: width - 1 - k
    wide = jnp.concatenate(
        [shifted[:, :, first(k) : first(k) + columns] for k in range(width)], axis=-1
    )
    wide = wide.swapaxes(0, 1).reshape(-1, width * features)
    last = (cotangent.shape[1] - 1) * strides[0] + 1
    products = [
        jnp.matmul(
            rows[row : row + last : strides[0]].reshape(-1, channels).T,
            wide,
            preferred_element_type=jnp.float32,
        )
        for row in range(height)
    ]
    gradient = jnp.stack(products).reshape(height, channels, width, features)
    return gradient.swapaxes(1, 2).astype(kernel.dtype)


convolution.defvjp(_forward, _backward)


def conv_general_dilated(
    lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, **options
) -> jax.Array:
    """Computes `convolution`, with the signature that flax.linen.Conv calls it by.

    It is for `flax.linen.Conv(conv_general_dilated=...)`. Anything but a plain 2D convolution
    (dilated, grouped, of another rank) goes to `lax`.
    """
    plain = (
        lhs.ndim == 4
        and options.get("feature_group_count", 1) == 1
        and set(lhs_dilation) == set(rhs_dilation) == {1}
    )
    if not plain:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            **options,
        )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    pairs = tuple((int(before), int(after)) for before, after in padding)
    return convolution(lhs, rhs, tuple(window_strides), pairs)
