"""What an iteration draws at random, as functions of the seed, the iteration and the sample.

Every sample has its own stream of random numbers, named by its place in the global batch, so that
no draw depends on how many devices there are.

Axes: T tasks, B samples of each, S sampling steps, K steps that each sample is trained on.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from diffusionrl_jax.diffusion import rollout

# Streams of random numbers within an iteration.
SAMPLING, TIMESTEPS, PRETRAINING, FORWARD, ENCODING, WINDOWS, CAPTIONS = range(7)


def keys(seed: int, iteration: jax.Array, stream: int, samples: jax.Array) -> jax.Array:
    """Returns one random key for each sample.

    Args:
      seed: the run's seed.
      iteration: the iteration's number, int32 scalar.
      stream: `SAMPLING`, `TIMESTEPS`, `PRETRAINING`, `FORWARD`, which is for samples that are
        noised anew, `ENCODING` and `CAPTIONS`, which are for the latents and the texts of pictures
        in pairs, or `WINDOWS`.
      samples: the samples' places in the global batch, int32 [n].

    Returns:
      PRNG keys [n].
    """
    key = jax.random.fold_in(jax.random.key(seed), iteration)
    key = jax.random.fold_in(key, stream)
    return jax.vmap(lambda sample: jax.random.fold_in(key, sample))(samples)


def first_of_group(noise_groups: Sequence[int], batch: int) -> jax.Array:
    """Returns the place in [T * B] of the first sample of each sample's group, int32 [T, B].

    Args:
      noise_groups: for each task, how many neighbours share noise; 1 means that none do.
      batch: B, the number of samples of each task.
    """
    sizes = jnp.asarray(noise_groups)[:, None]
    within = jnp.arange(batch) // sizes * sizes
    return jnp.arange(len(noise_groups))[:, None] * batch + within


def trained_steps(
    seed: int, iteration: jax.Array, firsts: jax.Array, last: int, count: int, first: int = 0
) -> jax.Array:
    """Draws the steps of its chain that each sample is trained on, without replacement.

    Every sample, or group that shares noise, draws its own, as in the paper's released code.

    Args:
      seed, iteration: as in `keys`.
      firsts: int32 [T, B], from `first_of_group`.
      last: only steps before this position of the chain are drawn. Where steps must have noise, it
        is the number of those that have.
      count: K, the number of steps that each sample is trained on.
      first: the position of the first step that may be drawn.

    Returns:
      Positions in the chain, int32 [T, B, K].
    """
    streams = keys(seed, iteration, TIMESTEPS, firsts.reshape(-1))
    chosen = jax.vmap(lambda key: jax.random.permutation(key, last - first))(streams)
    return first + chosen[:, :count].reshape(*firsts.shape, count)


def branch_steps(
    seed: int, iteration: jax.Array, tasks: int, branches: int, steps: int
) -> jax.Array:
    """Draws the step at which the groups of each part of a task's batch branch.

    A task's steps are evenly spaced, from a first one that is drawn for it: each part has any step
    with the same probability, and all parts together have them as evenly as their number allows.

    Args:
      seed, iteration: as in `keys`.
      tasks: T.
      branches: the number of parts.
      steps: how many steps of the chain, from its start, may be drawn.

    Returns:
      Positions in the chain, int32 [T, branches].
    """
    streams = keys(seed, iteration, TIMESTEPS, jnp.arange(tasks))
    draw = lambda key: jax.random.randint(key, (), 0, steps)
    spaced = jnp.arange(branches) * steps // branches
    return (jax.vmap(draw)(streams)[:, None] + spaced) % steps


def windows(
    seed: int, iteration: jax.Array, firsts: jax.Array, stochastic_steps: int, size: int
) -> jax.Array:
    """Draws the consecutive steps of its chain at which alone each sample has noise.

    Every group draws its own, all with the same probability: MixGRPO (2507.21802), with a window
    that is drawn anew in each iteration.

    Args:
      seed, iteration: as in `keys`.
      firsts: int32 [T, B], from `first_of_group` for all images of a prompt, whether they share
        noise or not. Of other windows for each image the rewards would not be comparable.
      stochastic_steps: how many steps of the chain, from its start, may have noise.
      size: how many steps a window has.

    Returns:
      The position in the chain of each window's first step, int32 [T, B].
    """
    streams = keys(seed, iteration, WINDOWS, firsts.reshape(-1))
    draw = lambda key: jax.random.randint(key, (), 0, stochastic_steps - size + 1)
    return jax.vmap(draw)(streams).reshape(firsts.shape)


def noise_sources(firsts: jax.Array, trained: jax.Array, steps: int) -> jax.Array:
    """Returns which sample's noise each sample takes at each step, and for x_T, which comes last.

    A sample takes the noise of the first of its group, except at the steps that it is trained on,
    where it takes its own: the samples of a group differ by nothing else.

    Args:
      firsts: int32 [T, B], from `first_of_group`.
      trained: int32 [T, B, K], from `trained_steps`.
      steps: S, the number of sampling steps.

    Returns:
      Places in [T * B], int32 [T, B, S + 1].
    """
    own = jnp.arange(firsts.size).reshape(*firsts.shape, 1)
    is_trained = (trained[..., None] == jnp.arange(steps + 1)).any(axis=2)
    return jnp.where(is_trained, own, firsts[..., None])


def noise_keys(seed: int, iteration: jax.Array, sources: jax.Array) -> jax.Array:
    """Returns the rollout's keys [B, S + 1] for sources [B, S + 1] from `noise_sources`."""
    streams = keys(seed, iteration, SAMPLING, sources.reshape(-1)).reshape(sources.shape)
    return rollout.noise_keys(streams, sources.shape[1] - 1)
