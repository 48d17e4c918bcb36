"""Trees of parameters: counted, and drawn at random to train from scratch."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

Parameters = Mapping[str, Any]

# Leaf name -> standard deviation from the parameter's shape, for training from scratch.
INITIALISED = {
    "kernel": lambda shape: math.prod(shape[:-1]) ** -0.5,
    "embedding": lambda shape: 0.02,
}
# Standard deviation of a standard normal cut off at -2 and 2.
TRUNCATED_DEVIATION = 0.87962566


def random_parameters(template: Mapping[str, Any], rng: jax.Array) -> dict[str, Any]:
    """Parameters for a template of shapes.

    Kernels are drawn as Flax draws them by default (truncated normal, variance 1 / fan in),
    embeddings with CLIP's standard deviation of 0.02; biases are 0 and scales 1.

    Args:
      template: the tree; its leaves need only a shape.
      rng: a PRNG key.

    Returns:
      The same tree, of float32 host arrays.
    """
    # One draw for all: the modules' own initialisers, one random graph for each of hundreds of
    # parameters, take a minute to compile even for a tiny model.
    flat = flatten(template)
    drawn = {path: leaf.shape for path, leaf in flat.items() if path[-1] in INITIALISED}
    ends = np.cumsum([math.prod(shape) for shape in drawn.values()])
    normal = np.asarray(jax.random.truncated_normal(rng, -2, 2, (int(ends[-1]),), jnp.float32))
    values = dict(zip(drawn, np.split(normal / TRUNCATED_DEVIATION, ends[:-1]), strict=True))
    params = {}
    for path, leaf in flat.items():
        if path in values:
            deviation = INITIALISED[path[-1]](leaf.shape)
            params[path] = np.float32(deviation) * values[path].reshape(leaf.shape)
        else:
            params[path] = np.full(leaf.shape, path[-1] == "scale", np.float32)
    return traverse_util.unflatten_dict(params)


def flatten(tree: Parameters) -> dict[tuple[str, ...], Any]:
    """A tree's leaves by path: as flax has it, whose annotation names its empty node, too."""
    return traverse_util.flatten_dict(tree)


def apply(module: nn.Module, variables: Mapping[str, Any], *arguments, **options) -> Any:
    """What a module says: as flax has it, whose annotation also names what is mutated."""
    return module.apply(variables, *arguments, **options)


def count(params: Parameters) -> int:
    """How many numbers a tree of parameters, or of shapes, has."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
