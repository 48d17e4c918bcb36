"""Turns rewards into advantages: how much better than expected each sample was."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffusionrl_jax.learning.iteration import Batch
from diffusionrl_jax.learning.prompt_statistics import Moments, advance

# The ways in which rewards are normalised by their group.
BY_GROUP = ("group", "group_mean", "win_rate")


@flax.struct.dataclass
class Advantages:
    """How much better than expected the samples of a batch were.

    Attributes:
      values: the advantages, float32 [batch]; 0 for samples whose reward is not finite.
      valid: bool [batch], true where the reward is finite.
      reward_mean: the mean reward of the valid samples, float32 scalar.
      reward_std: the standard deviation of the valid samples' rewards, float32 scalar.
    """

    values: jax.Array
    valid: jax.Array
    reward_mean: jax.Array
    reward_std: jax.Array


def batch_normalised(rewards: jax.Array, clip: float) -> Advantages:
    """Normalises rewards over the whole batch (Eq. 10), and clips them as the released code does.

    Args:
      rewards: float32 [batch]. Samples whose reward is NaN or infinite are left out.
      clip: the largest absolute advantage.

    Returns:
      The advantages; all are zero where every reward is the same.
    """
    valid = jnp.isfinite(rewards)
    count = jnp.maximum(valid.sum(), 1)
    rewards = jnp.where(valid, rewards, 0)
    mean = rewards.sum() / count
    deviation = jnp.where(valid, rewards - mean, 0)
    std = jnp.sqrt(jnp.square(deviation).sum() / count)
    values = jnp.clip(deviation / (std + 1e-8), -clip, clip)
    values = jnp.where(_all_equal(rewards, valid), 0, values)
    return Advantages(values=values, valid=valid, reward_mean=mean, reward_std=std)


def _all_equal(rewards: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns whether all valid rewards of a row (the last axis, which is kept) are the same.

    It is true where none is valid. Equal rewards are looked for because their mean is rounded:
    normalising what rounding leaves of the differences would turn nothing into advantages near 1.
    """
    highest = jnp.max(rewards, axis=-1, keepdims=True, where=valid, initial=-jnp.inf)
    lowest = jnp.min(rewards, axis=-1, keepdims=True, where=valid, initial=jnp.inf)
    return highest <= lowest


def _centred(rewards: jax.Array, group_size: int) -> jax.Array:
    """Subtracts the mean of each prompt's images, float32 [batch]; what is not finite stays so."""
    groups = rewards.reshape(-1, group_size)
    valid = jnp.isfinite(groups)
    mean = jnp.mean(groups, axis=1, where=valid, keepdims=True)
    return jnp.where(valid & _all_equal(groups, valid), 0, groups - mean).reshape(-1)


def group_normalised(rewards: jax.Array, group_size: int, clip: float) -> Advantages:
    """Subtracts the mean of each prompt's images, and divides by the deviation of all that is left.

    As in GRPO (2402.03300, Sec. 4.1.2), this removes how hard a prompt is, which the whole batch's
    mean leaves in as noise. Unlike in GRPO, one deviation serves the whole batch (2503.20783):
    prompts whose images are all alike teach nothing, and dividing by their own small deviation
    would make them count most.

    Args:
      rewards: float32 [batch]; the `group_size` samples of a prompt are neighbours.
      group_size: how many samples each prompt has; it divides the batch.
      clip: the largest absolute advantage.

    Returns:
      The advantages, with the mean and standard deviation of the whole batch's rewards.
    """
    centred = batch_normalised(_centred(rewards, group_size), clip)
    return dataclasses.replace(batch_normalised(rewards, clip), values=centred.values)


def group_centred(rewards: jax.Array, group_size: int, clip: float) -> Advantages:
    """Subtracts the mean of each prompt's images, and divides by nothing.

    For rewards that are 0 or 1: a deviation would blow up the few that differ from the rest.

    Args:
      rewards: float32 [batch]; the `group_size` samples of a prompt are neighbours.
      group_size: how many samples each prompt has; it divides the batch.
      clip: the largest absolute advantage.

    Returns:
      The advantages, with the mean and standard deviation of the whole batch's rewards.
    """
    by_batch = batch_normalised(rewards, clip)
    centred = jnp.where(by_batch.valid, _centred(rewards, group_size), 0)
    return dataclasses.replace(by_batch, values=jnp.clip(centred, -clip, clip))


def win_rates(rewards: jax.Array, group_size: int) -> jax.Array:
    """Returns the share of its prompt's other images that each image beats (Pref-GRPO, 2508.20751).

    Args:
      rewards: float32 [batch]; the `group_size` samples of a prompt are neighbours.
      group_size: how many samples each prompt has; it divides the batch.

    Returns:
      float32 [batch] in [0, 1], where a draw is half a win; NaN for rewards that are not finite,
      which neither win nor lose.
    """
    groups = rewards.reshape(-1, group_size)
    valid = jnp.isfinite(groups)
    own, other = groups[:, :, None], groups[:, None, :]
    wins = jnp.where(valid[:, None, :], (own > other) + 0.5 * (own == other), 0).sum(axis=2)
    others = valid.sum(axis=1, keepdims=True) - 1
    # An image draws with itself.
    rates = jnp.where(others > 0, (wins - 0.5) / jnp.maximum(others, 1), 0.5)
    return jnp.where(valid, rates, jnp.nan).reshape(-1)


def win_normalised(rewards: jax.Array, group_size: int, clip: float) -> Advantages:
    """Normalises win rates as `group_normalised` does rewards; see `win_rates`."""
    wins = group_normalised(win_rates(rewards, group_size), group_size, clip)
    return dataclasses.replace(batch_normalised(rewards, clip), values=wins.values)


OF_GROUPS = dict(zip(BY_GROUP, (group_normalised, group_centred, win_normalised), strict=True))


def prompt_normalised(rewards: jax.Array, moments: Moments, clip: float) -> Advantages:
    """Normalises rewards by their prompt's last rewards' mean and deviation (DDPO, 2305.13301).

    Args:
      rewards: float32 [batch].
      moments: the mean and deviation of each sample's prompt. Where a prompt has not had enough
        rewards, the batch's are used instead.
      clip: the largest absolute advantage.

    Returns:
      The advantages, with the mean and standard deviation of the whole batch's rewards.
    """
    by_batch = batch_normalised(rewards, clip)
    values = jnp.clip((rewards - moments.mean) / (moments.std + 1e-6), -clip, clip)
    values = jnp.where(by_batch.valid & (moments.std > 0), values, 0)
    return dataclasses.replace(by_batch, values=jnp.where(moments.enough, values, by_batch.values))


def normalise(
    rewards: jax.Array,
    group_sizes: Sequence[int],
    clip: float,
    moments: Sequence[Moments | None] = (),
    normalisations: Sequence[str] = (),
) -> Advantages:
    """Computes every task's advantages, each task's by its own rule.

    Args:
      rewards: float32 [tasks, batch].
      group_sizes: for each task, the group size of `group_normalised`; 0 means `batch_normalised`.
      clip: the largest absolute advantage.
      moments: for each task, the moments of `prompt_normalised`, which then goes before the group
        size, or None. It may be empty if no task has any.
      normalisations: for each task with a group size, one of `BY_GROUP`; those of other tasks are
        not read. Empty means "group" for all.

    Returns:
      The advantages; `values` and `valid` are [tasks, batch], the mean and deviation [tasks].
    """

    def one(row, group_size, moments, normalisation):
        if moments is not None:
            return prompt_normalised(row, moments, clip)
        if group_size:
            return OF_GROUPS[normalisation](row, group_size, clip)
        return batch_normalised(row, clip)

    moments = moments or (None,) * len(group_sizes)
    normalisations = normalisations or ("group",) * len(group_sizes)
    rows = zip(rewards, group_sizes, moments, normalisations, strict=True)
    by_task = [one(*task) for task in rows]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *by_task)


def reward_metrics(advantages: Advantages) -> dict[str, jax.Array]:
    """Returns what is logged of the rewards, by name; each array is [T]."""
    return {
        "reward_mean": advantages.reward_mean,
        "reward_std": advantages.reward_std,
        "invalid_rewards": (~advantages.valid).sum(axis=1),
    }


@dataclasses.dataclass(frozen=True)
class AdvantageRules:
    """How each task's rewards become advantages.

    Attributes:
      clip: the largest absolute advantage.
      groups: for each task, how many neighbours in the batch are normalised together; 0 means the
        whole batch.
      prompt_min_count: for each task whose prompts' past rewards are kept in the state, how many of
        them a prompt needs before it is normalised by them. It has no effect on other tasks.
      mesh: the devices over which the state is split.
      normalisations: as in `normalise`.
    """

    clip: float
    groups: tuple[int, ...]
    prompt_min_count: tuple[int, ...]
    mesh: Mesh
    normalisations: tuple[str, ...] = ()

    def __call__(
        self, rewards: jax.Array, batch: Batch, memory: Mapping[str, Any]
    ) -> tuple[Advantages, dict[str, Any]]:
        """Computes every task's advantages by its own rule.

        Args:
          rewards: float32 [T, B].
          batch: the iteration's batch, which says which prompt each sample is of.
          memory: the train state's memory, with "past_rewards" where a task keeps any.

        Returns:
          The advantages, `values` and `valid` [T, B], and the parts of the memory that have
          changed.
        """
        past = memory.get("past_rewards", ())
        past, moments = advance(
            past, batch.prompt_places, rewards, self.prompt_min_count, self.mesh
        )
        advantages = normalise(rewards, self.groups, self.clip, moments, self.normalisations)
        return advantages, {"past_rewards": past} if past else {}
