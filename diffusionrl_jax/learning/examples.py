"""The batches that an iteration's optimiser steps are taken on.

Axes: B samples, U updates.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp

from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.learning import draws


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


def noise_anew(
    process: Process,
    clean: jax.Array,
    seed: int,
    iteration: jax.Array,
    count: int,
    sources: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Samples' latents noised at times of their own, several times over: the forward process.

    Args:
      process: which noises.
      clean: float32 [T, B, ...], where the chains have ended.
      seed, iteration: as in `draws.keys`.
      count: how many times; an update each.
      sources: int32 [T, B], the place in [T * B] of the sample whose noise each one takes; its own
        if None. Times are its own in any case.

    Returns:
      The task, int32 [T * count], the noised latents and what the denoiser should say of them,
      float32 [T * count, B, ...], and the times [T * count, B].
    """
    tasks, size = clean.shape[:2]
    own = jnp.arange(tasks * size).reshape(tasks, size)
    keys_of = lambda places: draws.keys(seed, iteration, draws.FORWARD, places.reshape(-1))
    keys, of_noise = (keys_of(own if places is None else places) for places in (None, sources))
    task = jnp.repeat(jnp.arange(tasks), count)

    @jax.vmap
    def one(clean, keys, of_noise, number):
        halves = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, number)))
        noise = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:]))(
            halves(of_noise)[:, 0]
        )
        times = jax.vmap(process.draw_time)(halves(keys)[:, 1])
        return process.noise(clean, noise, times), times, process.target(clean, noise, times)

    numbers = jnp.tile(jnp.arange(count), tasks)
    of_updates = (each.reshape(tasks, size)[task] for each in (keys, of_noise))
    shown, times, target = one(clean[task], *of_updates, numbers)
    return task, shown, times, target
