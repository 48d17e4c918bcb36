"""Counts trees of parameters, and draws them at random to train from scratch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from diffusionrl_jax.models.stacks import layer_shape

Parameters = Mapping[str, Any]

# For each leaf's name, the standard deviation that a parameter of a shape is drawn with.
INITIALISED = {
    "kernel": lambda shape: math.prod(shape[:-1]) ** -0.5,
    "embedding": lambda shape: 0.02,
}
# The standard deviation of a standard normal distribution that is cut off at -2 and 2.
TRUNCATED_DEVIATION = 0.87962566


def random_parameters(template: Mapping[str, Any], rng: jax.Array) -> dict[str, Any]:
    """Draws parameters for a template of shapes.

    Kernels are drawn as Flax draws them by default (truncated normal, variance 1 / fan in), and
    embeddings with CLIP's standard deviation of 0.02. Biases are 0 and scales 1.

    Args:
      template: the tree, whose leaves need only a shape.
      rng: a PRNG key.

    Returns:
      A tree of the same structure, of float32 host arrays.
    """
    # All are drawn at once: the modules' own initialisers are one random graph for each of hundreds
    # of parameters, and take a minute to compile even for a tiny model.
    flat = flatten(template)
    drawn = {path: leaf.shape for path, leaf in flat.items() if path[-1] in INITIALISED}
    ends = np.cumsum([math.prod(shape) for shape in drawn.values()])
    normal = np.asarray(jax.random.truncated_normal(rng, -2, 2, (int(ends[-1]),), jnp.float32))
    values = dict(zip(drawn, np.split(normal / TRUNCATED_DEVIATION, ends[:-1]), strict=True))
    params = {}
    for path, leaf in flat.items():
        if path in values:
            deviation = INITIALISED[path[-1]](layer_shape(path, leaf.shape))
            params[path] = np.float32(deviation) * values[path].reshape(leaf.shape)
        else:
            params[path] = np.full(leaf.shape, path[-1] == "scale", np.float32)
    return traverse_util.unflatten_dict(params)


def flatten(tree: Parameters) -> dict[tuple[str, ...], Any]:
    """Returns a tree's leaves by their paths.

    It is flax's `flatten_dict`, whose annotation also admits the empty node that never occurs here.
    """
    return traverse_util.flatten_dict(tree)


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    """Returns the shape of a float32 parameter."""
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def parts(params: Parameters, names: Sequence[str]) -> dict[str, Any]:
    """Returns the parameters of some of a network's parts."""
    return {name: params[name] for name in names}


def apply(module: nn.Module, variables: Mapping[str, Any], *arguments, **options) -> Any:
    """Returns what a module computes.

    It is flax's `apply`, whose annotation also admits the changed variables that never occur here.
    """
    return module.apply(variables, *arguments, **options)


def count(params: Parameters) -> int:
    """Returns how many numbers a tree of parameters, or of shapes, has."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
