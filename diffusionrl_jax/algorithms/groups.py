"""The samples of a prompt, which are neighbours in a batch, seen as a group."""

import jax
import jax.numpy as jnp


def of_group(values: jax.Array, group: jax.Array) -> jax.Array:
    """Returns each sample's sum over its group, float32 [B].

    Args:
      values: what is summed, [B].
      group: the number of each sample's group, int32 [B].
    """
    return jnp.where(group[:, None] == group, values, 0).sum(axis=1)


def centred(values: jax.Array, valid: jax.Array, group: jax.Array) -> jax.Array:
    """Returns values less the mean of their group's valid ones, float32 [B]; 0 for others.

    Args:
      values: [B].
      valid: which samples have a value, bool [B].
      group: as in `of_group`.
    """
    count = jnp.maximum(of_group(valid.astype(jnp.float32), group), 1)
    mean = of_group(jnp.where(valid, values, 0), group) / count
    return jnp.where(valid, values - mean, 0)


def best_of_group(scores: jax.Array, valid: jax.Array, group_size: int) -> jax.Array:
    """Returns which sample of its group is the best, for each sample, int32 [B].

    It is its number within the group; of a group without valid samples the first one's.

    Args:
      scores: the higher, the better, [B].
      valid: which samples may be the best, bool [B].
      group_size: how many neighbours are a group.
    """
    groups = jnp.where(valid, scores, -jnp.inf).reshape(-1, group_size)
    return jnp.repeat(groups.argmax(axis=1), group_size)


def from_group(values: jax.Array, numbers: jax.Array, group_size: int) -> jax.Array:
    """Takes another sample's value for each sample, of its own group: nothing leaves a device.

    Args:
      values: [B, ...].
      numbers: the number within the group of the sample whose value is taken, int32 [B].
      group_size: how many neighbours are a group.

    Returns:
      The values that are taken, [B, ...].
    """
    groups = values.reshape(-1, group_size, *values.shape[1:])
    numbers = numbers.reshape(-1, group_size, *[1] * (values.ndim - 1))
    return jnp.take_along_axis(groups, numbers, axis=1).reshape(values.shape)
