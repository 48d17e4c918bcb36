"""Keeps each prompt's last rewards in the train state, which tell what its images usually score."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.distributed.mesh import parameter_sharding


@flax.struct.dataclass
class PromptStatistics:
    """The last rewards of each of P prompts.

    Attributes:
      rewards: float32 [P, buffer], a ring buffer for each prompt, filled from the left.
      counts: int32 [P], how many finite rewards each prompt has had so far.
    """

    rewards: jax.Array
    counts: jax.Array


@flax.struct.dataclass
class Moments:
    """The mean and deviation of the last rewards of each sample's prompt.

    Attributes:
      mean: float32 [batch].
      std: the standard deviation, float32 [batch]; exactly 0 where all rewards are the same.
      enough: bool [batch], whether the prompt has had enough rewards to be normalised by them.
    """

    mean: jax.Array
    std: jax.Array
    enough: jax.Array


# The statistics of each task; None for a task that is not normalised by prompt. Empty if no task
# is.
PastRewards = tuple[PromptStatistics | None, ...]


def init_statistics(prompts: int, buffer: int) -> PromptStatistics:
    """Returns the statistics of prompts that have had no reward yet.

    Args:
      prompts: P, the number of prompts.
      buffer: how many rewards are kept of each prompt.
    """
    return PromptStatistics(
        rewards=jnp.zeros((prompts, buffer)), counts=jnp.zeros(prompts, jnp.int32)
    )


def add_rewards(
    statistics: PromptStatistics, places: jax.Array, rewards: jax.Array
) -> PromptStatistics:
    """Adds a batch of rewards, which push each prompt's oldest rewards out.

    Args:
      statistics: the statistics so far.
      places: int32 [batch], which prompt each sample is of. Several samples may be of one prompt.
      rewards: float32 [batch]; rewards that are not finite are left out.
    """
    prompts, buffer = statistics.rewards.shape
    # Rewards are sorted by prompt, and by place within one. What is left out gets no prompt.
    row = jnp.where(jnp.isfinite(rewards), places, prompts)
    order = jnp.argsort(row, stable=True)
    row = row[order]
    here = jnp.arange(len(row))
    before = here - jnp.searchsorted(row, row, side="left")
    after = jnp.searchsorted(row, row, side="right") - 1 - here
    position = (statistics.counts.at[row].get(mode="clip") + before) % buffer
    # Two rewards must not be written to one place: the order of writing is not defined.
    written = jnp.where(after < buffer, row, prompts)
    return PromptStatistics(
        rewards=statistics.rewards.at[written, position].set(rewards[order], mode="drop"),
        counts=statistics.counts.at[row].add(1, mode="drop"),
    )


def moments(statistics: PromptStatistics, places: jax.Array, min_count: int) -> Moments:
    """Computes the mean and standard deviation of the rewards kept of each sample's prompt.

    Args:
      statistics: the statistics, to which the batch's own rewards have been added.
      places: int32 [batch], which prompt each sample is of.
      min_count: how many rewards are enough.
    """
    rewards = statistics.rewards[places]
    count = jnp.minimum(statistics.counts[places], rewards.shape[1])
    kept = jnp.arange(rewards.shape[1]) < count[:, None]
    divisor = jnp.maximum(count, 1)
    mean = jnp.where(kept, rewards, 0).sum(axis=1) / divisor
    deviation = jnp.where(kept, rewards - mean[:, None], 0)
    std = jnp.sqrt(jnp.square(deviation).sum(axis=1) / divisor)
    highest = jnp.max(rewards, axis=1, where=kept, initial=-jnp.inf)
    lowest = jnp.min(rewards, axis=1, where=kept, initial=jnp.inf)
    return Moments(
        mean=mean, std=jnp.where(highest > lowest, std, 0), enough=count >= max(min_count, 1)
    )


def init_past_rewards(tasks: Config) -> PastRewards:
    """Returns the past rewards before the first iteration.

    Args:
      tasks: name -> task, from `experiments.tasks.make_task`.
    """
    wanted = [task.normalisation == "prompt" for task in tasks.values()]
    if not any(wanted):
        return ()
    return tuple(
        init_statistics(task.most_prompts, task.prompt_buffer) if kept else None
        for task, kept in zip(tasks.values(), wanted, strict=True)
    )


def advance(
    past_rewards: PastRewards,
    places: Sequence[jax.Array | None],
    rewards: jax.Array,
    min_counts: Sequence[int],
    mesh: Mesh,
) -> tuple[PastRewards, tuple[Moments | None, ...]]:
    """Adds an iteration's rewards, and returns the moments by which its samples are normalised.

    Args:
      past_rewards: the past rewards so far.
      places: for each task, int32 [batch] as in `add_rewards`, or None where it keeps no rewards.
      rewards: float32 [tasks, batch].
      min_counts: for each task, the `min_count` of `moments`.
      mesh: the devices over which the state is split.

    Returns:
      The new past rewards, and for each task its moments or None. Both are empty if none are kept.
    """
    if not past_rewards:
        return (), ()
    # Exactly the tasks that keep rewards have places.
    add = lambda past, *more: None if past is None else add_rewards(past, *more)
    added = tuple(add(*parts) for parts in zip(past_rewards, places, rewards, strict=True))
    added = jax.lax.with_sharding_constraint(added, parameter_sharding(mesh, added))
    measure = lambda past, *more: None if past is None else moments(past, *more)
    measures = tuple(measure(*parts) for parts in zip(added, places, min_counts, strict=True))
    return added, measures
