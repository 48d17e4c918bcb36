"""How much better than expected each sample was."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffusionrl_jax.learning.iteration import Batch
from diffusionrl_jax.learning.prompt_statistics import Moments, advance


@flax.struct.dataclass
class Advantages:
    """How much better than expected the samples of a batch were.

    Attributes:
      values: float32 [batch]; 0 for samples without a finite reward.
      valid: bool [batch], where the reward was finite.
      reward_mean: float32 scalar over the valid samples.
      reward_std: the same.
    """

    values: jax.Array
    valid: jax.Array
    reward_mean: jax.Array
    reward_std: jax.Array


def batch_normalised(rewards: jax.Array, clip: float) -> Advantages:
    """Rewards normalised over the whole batch (Eq. 10), clipped as in the released code.

    Args:
      rewards: float32 [batch]; samples whose reward is NaN or infinite are left out.
      clip: largest absolute advantage.

    Returns:
      The advantages; all zero where every reward is the same.
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
    """Whether the valid ones in a row are, with the last axis kept; true where none is valid.

    The mean of equal numbers is rounded: normalising what is left would make 1s out of nothing.
    """
    highest = jnp.max(rewards, axis=-1, keepdims=True, where=valid, initial=-jnp.inf)
    lowest = jnp.min(rewards, axis=-1, keepdims=True, where=valid, initial=jnp.inf)
    return highest <= lowest


def group_normalised(rewards: jax.Array, group_size: int, clip: float) -> Advantages:
    """Rewards less the mean of their prompt's images, by the deviation of all that is left.

    As GRPO (2402.03300, Sec. 4.1.2) it takes out how hard a prompt is, which the whole batch's mean
    leaves in as noise. Unlike it, one deviation serves the batch (2503.20783): prompts whose images
    are all alike teach nothing, and dividing by their own deviation would make them count most.

    Args:
      rewards: float32 [batch], the `group_size` samples of a prompt contiguous.
      group_size: divides the batch.
      clip: largest absolute advantage.

    Returns:
      The advantages, with the mean and standard deviation of the whole batch's rewards.
    """
    groups = rewards.reshape(-1, group_size)
    valid = jnp.isfinite(groups)
    mean = jnp.mean(groups, axis=1, where=valid, keepdims=True)
    centred = jnp.where(valid & _all_equal(groups, valid), 0, groups - mean)
    centred = batch_normalised(centred.reshape(-1), clip)
    return dataclasses.replace(batch_normalised(rewards, clip), values=centred.values)


def prompt_normalised(rewards: jax.Array, moments: Moments, clip: float) -> Advantages:
    """Rewards by the mean and deviation of their prompt's last ones (DDPO, 2305.13301).

    Args:
      rewards: float32 [batch].
      moments: of each sample's prompt; without enough rewards, the batch's are used.
      clip: largest absolute advantage.

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
) -> Advantages:
    """Every task's advantages, each by its own rule.

    Args:
      rewards: float32 [tasks, batch].
      group_sizes: of each task, for `group_normalised`; 0 is `batch_normalised`.
      clip: largest absolute advantage.
      moments: of each task, for `prompt_normalised`, or None; empty if of none.

    Returns:
      [tasks, batch] and [tasks] each.
    """

    def one(row, group_size, moments):
        if moments is not None:
            return prompt_normalised(row, moments, clip)
        return (
            group_normalised(row, group_size, clip) if group_size else batch_normalised(row, clip)
        )

    moments = moments or (None,) * len(group_sizes)
    by_task = [one(*task) for task in zip(rewards, group_sizes, moments, strict=True)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *by_task)


def reward_metrics(advantages: Advantages) -> dict[str, jax.Array]:
    """What is logged of the rewards: [T] each."""
    return {
        "reward_mean": advantages.reward_mean,
        "reward_std": advantages.reward_std,
        "invalid_rewards": (~advantages.valid).sum(axis=1),
    }


@dataclasses.dataclass(frozen=True)
class AdvantageRules:
    """How each task's rewards become advantages.

    Attributes:
      clip: largest absolute advantage.
      groups: of each task, how many neighbours in the batch are normalised together; 0 is the whole
        batch.
      prompt_min_count: of each task whose state keeps its prompts' past rewards, how many of them
        it takes to normalise by them; of others without effect.
      mesh: the devices.
    """

    clip: float
    groups: tuple[int, ...]
    prompt_min_count: tuple[int, ...]
    mesh: Mesh

    def __call__(
        self, rewards: jax.Array, batch: Batch, memory: Mapping[str, Any]
    ) -> tuple[Advantages, dict[str, Any]]:
        """Every task's advantages by its own rule.

        Args:
          rewards: float32 [T, B].
          batch: of which prompts they are.
          memory: of the state, with "past_rewards" where a task keeps any.

        Returns:
          The advantages, arrays [T, B], and what of the memory has changed.
        """
        past = memory.get("past_rewards", ())
        past, moments = advance(
            past, batch.prompt_places, rewards, self.prompt_min_count, self.mesh
        )
        advantages = normalise(rewards, self.groups, self.clip, moments)
        return advantages, {"past_rewards": past} if past else {}
