"""Normalisations of the last axis of tokens, in float32, as transformers have them."""

import jax
import jax.numpy as jnp

EPSILON = 1e-6


def normalise(values: jax.Array) -> jax.Array:
    """Returns values of mean 0 and variance 1, in their own dtype; there are no parameters."""
    exact = values.astype(jnp.float32)
    exact -= exact.mean(-1, keepdims=True)
    exact *= jax.lax.rsqrt(jnp.square(exact).mean(-1, keepdims=True) + EPSILON)
    return exact.astype(values.dtype)


def root_mean_square(scale: jax.Array, values: jax.Array, epsilon: float = EPSILON) -> jax.Array:
    """Returns values divided by the root of their mean square, times `scale`: 1910.07467."""
    exact = values.astype(jnp.float32)
    exact *= jax.lax.rsqrt(jnp.square(exact).mean(-1, keepdims=True) + epsilon)
    return (exact * scale).astype(values.dtype)
