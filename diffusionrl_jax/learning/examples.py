"""The batches that an iteration's optimiser steps are taken on.

Axes: T tasks, B samples of each, U updates.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.learning import draws


@flax.struct.dataclass
class Examples:
    """What the denoiser is shown in each of U updates, and what the losses take besides.

    Attributes:
      latents: float32 [U, B, ...], the latents that the denoiser is shown.
      times: [U, B], the process' times of these latents.
      text: int32 [U], which row of the iteration's text an update has. Updates of one task share a
        row.
      weight: float32 [U], the factor of the update's loss.
      objective: int32 [U], whose loss the update has: its place among the objectives.
      own: what the objectives take besides, by name: arrays [U, B, ...].
      group: how many samples each row of the batch stands for. B is then the number of groups, and
        what each sample has for itself is [U, B, group, ...].
      objectives: all numbers that are in `objective`.
    """

    latents: jax.Array
    times: jax.Array
    text: jax.Array
    weight: jax.Array
    objective: jax.Array
    own: Mapping[str, jax.Array]
    group: int = flax.struct.field(pytree_node=False, default=1)
    objectives: tuple[int, ...] = flax.struct.field(pytree_node=False, default=(0,))


def concatenate(parts: Sequence[Examples]) -> Examples:
    """Puts the examples of several objectives one after another, along U.

    Where an objective has no field of a name that another one has, it gets zeros.

    Args:
      parts: the objectives' examples, of one batch and group. Fields of one name have one dtype,
        and one shape apart from U.
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
    of_all = tuple(sorted({place for part in parts for place in part.objectives}))
    parts = [dataclasses.replace(part, objectives=of_all) for part in parts]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def side_by_side(parts: Sequence[Examples], tasks: int) -> Examples:
    """Puts the examples of one objective together, task by task.

    Args:
      parts: as in `concatenate`; each has equally many updates of every task, task by task.
      tasks: the number of the tasks.
    """
    sizes = [len(part.weight) for part in parts]
    places = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    order = np.concatenate([place.reshape(tasks, -1) for place in places], axis=1).reshape(-1)
    return jax.tree.map(lambda leaf: leaf[order], concatenate(parts))


def by_update(array: jax.Array) -> jax.Array:
    """Reorders what K steps of each sample have, [T, B, K, ...], to [T * K, B, ...]."""
    tasks, size, count = array.shape[:3]
    return jnp.moveaxis(array, 2, 1).reshape(tasks * count, size, *array.shape[3:])


def of_steps(
    process: Process, latents: jax.Array, trained: jax.Array, weights: Sequence[float]
) -> Examples:
    """Shows the denoiser what it was shown at K steps of each sample's chain.

    Args:
      process: the chain.
      latents: the latents before these steps, float32 [T, B, K, ...].
      trained: the steps' positions in the chain, int32 [T, B, K].
      weights: for each task, the factor of its loss.

    Returns:
      One update for each task and step, one task after another, with the positions as
      "step_index". `text` is the number of the task.
    """
    tasks, _, count = trained.shape
    task, step_index = jnp.repeat(jnp.arange(tasks), count), by_update(trained)
    return Examples(
        latents=by_update(latents),
        times=process.times[step_index],
        text=task,
        weight=jnp.asarray(weights, jnp.float32)[task],
        objective=jnp.zeros_like(task),
        own={"step_index": step_index},
    )


def noise_anew(
    process: Process,
    clean: jax.Array,
    weights: Sequence[float],
    seed: int,
    iteration: jax.Array,
    count: int,
    *,
    places: jax.Array,
    sources: jax.Array | None = None,
    times: tuple[float, float] = (0.0, 1.0),
    time: jax.Array | None = None,
) -> Examples:
    """Noises samples' final latents at newly drawn times, several times over: the forward process.

    Args:
      process: the process that draws the times and adds the noise.
      clean: the latents where the chains ended, float32 [T, B, ...].
      weights: for each task, the factor of its loss.
      seed, iteration: as in `draws.keys`.
      count: how often each sample is noised; each time is an update.
      places: int32 [T, B], the samples' numbers, of which each has noise and times of its own.
      sources: int32 [T, B], the place in [T * B] of the sample whose noise and time each sample
        takes, so that their errors can be compared. None gives each sample its own.
      times: the shares of the training's times between which times are drawn.
      time: the one to which all are noised, a scalar; None draws times.

    Returns:
      `count` updates for each task, in the order of the tasks, with what the denoiser should
      predict as "target". `text` is the number of the task.
    """
    tasks, size = clean.shape[:2]
    task = jnp.repeat(jnp.arange(tasks), count)

    def one(clean, keys, number):
        halves = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, number)))(keys)
        noise = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:]))(halves[:, 0])
        draw = lambda key: process.draw_time(key, *times) if time is None else time
        drawn = jax.vmap(draw)(halves[:, 1])
        return process.noise(clean, noise, drawn), drawn, process.target(clean, noise, drawn)

    numbers = jnp.tile(jnp.arange(count), tasks)
    sources = places if sources is None else places.reshape(-1)[sources]
    keys = draws.keys(seed, iteration, draws.FORWARD, sources.reshape(-1)).reshape(tasks, size)
    shown, drawn, target = jax.vmap(one)(clean[task], keys[task], numbers)
    weight = jnp.asarray(weights, jnp.float32)[task]
    return Examples(shown, drawn, task, weight, jnp.zeros_like(task), {"target": target})
