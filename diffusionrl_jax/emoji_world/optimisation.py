"""Minimises a loss, as all networks of the emoji world's generators are trained."""

import collections
import time
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import optax

from diffusionrl_jax.distributed.mesh import batch_sharding, replicated

EMA_DECAY = 0.998


def annealed(learning_rate: float, steps: int) -> optax.Schedule:
    """Makes a rate that is warmed up and then annealed to a hundredth."""
    return optax.warmup_cosine_decay_schedule(
        0, learning_rate, min(300, steps // 10), steps, learning_rate / 100
    )


def constant(learning_rate: float, steps: int, annealing: int) -> optax.Schedule:
    """Makes a rate that is warmed up, and constant until it falls to a hundredth at the end.

    Training can thus go on for as long as one likes, and be ended from any step on.

    Args:
      learning_rate: the constant rate.
      steps: the number of all steps.
      annealing: over how many of them, the last, the rate falls. 0 means that it doesn't.
    """
    warmed_up = optax.linear_schedule(0, learning_rate, 200)
    if not annealing:
        return warmed_up
    end = optax.linear_schedule(1, 0.01, annealing, steps - annealing)
    return lambda step: warmed_up(step) * end(step)


def make_optimizer(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Makes AdamW."""
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=1e-4)
    )


def train(name, loss_function, params, batches, schedule, steps, mesh, checkpoint, state_file=None):
    """Minimises a loss.

    Args:
      name: what the log calls the model.
      loss_function: a function from (params, batch, key) to (loss, dict of scalars).
      params: the parameters to start from.
      batches: a function from a step to a tree of host arrays [batch, ...].
      schedule: the learning rate of each step.
      steps: how many steps are taken, those before an interruption among them.
      mesh: the devices over which batches are split.
      checkpoint: a function that is called with the averaged parameters every 1,000 steps and at
        the end.
      state_file: where everything is kept every 250 steps, and taken from at the start if it
        exists, an `epath.Path`; None means nowhere.

    Returns:
      The exponential moving average of the parameters.
    """
    optimizer = make_optimizer(schedule)
    everywhere, sharded = replicated(mesh), batch_sharding(mesh)

    def step(params, average, state, batch, index):
        key = jax.random.fold_in(jax.random.key(0), index)
        gradients, metrics = jax.grad(loss_function, has_aux=True)(params, batch, key)
        changes, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, changes)
        # At first it is about the average of the steps so far, later of the last 1 / (1 - decay).
        decay = jnp.minimum(EMA_DECAY, index / (index + 10))
        average = optax.incremental_update(params, average, 1 - decay)
        return params, average, state, metrics

    step = jax.jit(step, donate_argnums=(0, 1, 2), out_shardings=everywhere)
    first, carry = 0, (params, params, optimizer.init(params))
    if state_file is not None and state_file.exists():
        kept: Any = flax.serialization.from_bytes((first, carry), state_file.read_bytes())
        first, carry = kept
    carry = jax.device_put(carry, everywhere)
    carry = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), carry)
    start, sums = time.time(), collections.Counter()
    for index in range(first, steps):
        batch = jax.device_put(batches(index), sharded)
        *carry, metrics = step(*carry, batch, index)
        sums.update(jax.device_get(metrics))
        done = index + 1
        if done % 100 == 0:
            summed = min(100, done - first)  # Fewer, where it has gone on from an earlier state.
            means = {key: round(float(value) / summed, 5) for key, value in sums.items()}
            print(name, done, round(time.time() - start), means, flush=True)
            sums.clear()
        if state_file is not None and (done % 250 == 0 or done == steps):
            # A file that is written half is never in the place of a whole one.
            beside = state_file.with_suffix(".partial")
            state = jax.device_get((done, tuple(carry)))
            beside.write_bytes(flax.serialization.to_bytes(state))
            beside.replace(state_file)
        if done % 1000 == 0 or done == steps:
            checkpoint(carry[1])
    return carry[1]
