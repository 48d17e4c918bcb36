"""How much the pictures of one prompt differ from each other."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from diffusionrl_jax.distributed.mesh import (
    batch_sharding,
    gather_parameters,
    place,
    replicated,
)
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.rewards import Reward
from diffusionrl_jax.rewards.weighted_sum import WeightedSum

PIXELS = "pixels"
CLIP = "CLIP's embedding"
SIDE = 16  # Of what pictures are averaged to where their pixels are compared.
PER_DEVICE = 8

# Takes images float32 [n, height, width, 3] in [0, 1], and returns features float32 [n, width].
Features = Callable[[np.ndarray], np.ndarray]


def pixel_features(images: np.ndarray) -> np.ndarray:
    """Returns features whose Euclidean distance is the root mean square difference of the pictures.

    Pictures are compared as averages over at most `SIDE` by `SIDE` areas.

    Args:
      images: float32 [n, height, width, 3] in [0, 1].

    Returns:
      float32 [n, width].
    """
    count, height, width, _ = images.shape
    down, across = max(1, height // SIDE), max(1, width // SIDE)
    cut = images[:, : height // down * down, : width // across * across]
    areas = cut.reshape(count, height // down, down, width // across, across, 3).mean((2, 4))
    flat = areas.reshape(count, -1)
    return flat / np.sqrt(flat.shape[1], dtype=np.float32)


def make_features(
    scorers: Iterable[tuple[Reward, Parameters]], mesh: Mesh, per_device: int = 0
) -> tuple[str, Features]:
    """Returns what pictures are compared by: a CLIP's image tower if a scorer has one, or pixels.

    Args:
      scorers: the rewards that are open, with their parameters on the mesh.
      mesh: the devices.
      per_device: how many pictures each device embeds at a time; 0 means `PER_DEVICE`.

    Returns:
      What they are compared by, `CLIP` or `PIXELS`, and the function.
    """
    found = next(filter(None, (_embedder(*scorer) for scorer in scorers)), None)
    if found is None:
        return PIXELS, pixel_features
    reward, params = found
    embed = jax.jit(
        lambda params, images: reward.embed(gather_parameters(params, mesh), images),
        out_shardings=replicated(mesh),
    )
    size, sharding = (per_device or PER_DEVICE) * mesh.size, batch_sharding(mesh)

    def features(images: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(images), size):  # One program is compiled.
            part = images[start : start + size]
            padded = np.zeros((size, *images.shape[1:]), np.float32)
            padded[: len(part)] = part
            parts.append(np.asarray(embed(params, place(padded, sharding)))[: len(part)])
        return np.concatenate(parts)

    return CLIP, features


def _embedder(reward: Reward, params: Mapping) -> tuple[Any, Parameters] | None:
    """Returns a reward, or a part of it, that has an image tower, and its parameters."""
    if isinstance(reward, WeightedSum):
        parts = ((part, params[name]) for name, part in reward.rewards.items())
        return next(filter(None, (_embedder(*part) for part in parts)), None)
    return (reward, dict(params)) if hasattr(reward, "embed") else None


def within_prompts(prompts: Sequence[str], features: np.ndarray) -> dict[str, float]:
    """Computes the mean distance between two different pictures of a prompt.

    Args:
      prompts: the prompt of each picture.
      features: [n, width], from a `Features`.

    Returns:
      Each prompt's mean Euclidean distance over its pairs of pictures. Prompts with a single
      picture, of which nothing can be said, are left out.
    """
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    return {
        prompt: mean_distance(features[chosen]) for prompt, chosen in rows.items() if chosen[1:]
    }


def mean_distance(features: np.ndarray) -> float:
    """Returns the mean Euclidean distance over all pairs of different rows of [n, width]."""
    vectors = np.asarray(features, np.float64)
    first, second = np.triu_indices(len(vectors), 1)
    return float(np.linalg.norm(vectors[first] - vectors[second], axis=1).mean())
