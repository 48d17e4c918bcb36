"""Splits a sharded batch into microbatches without moving anything between devices."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusionrl_jax.distributed.mesh import BATCH_AXES, on_one_device
from diffusionrl_jax.mistakes import UserError


def microbatch_count(batch: int, per_device: int, devices: int) -> int:
    """Returns into how many microbatches a batch is split.

    Args:
      batch: the number of samples over all devices.
      per_device: how many samples a device takes at a time, at most; 0 means all at once.
      devices: the number of devices.

    Raises:
      UserError: a device's share of the batch is not a multiple of the microbatch.
    """
    share = batch // devices
    if per_device == 0 or per_device >= share:
        return 1
    if share % per_device:
        raise UserError(
            f"A device's share of the batch, {share}, is not a multiple of the microbatch "
            f"{per_device}."
        )
    return share // per_device


def largest_divisor(count: int, most: int) -> int:
    """Returns the largest divisor of `count` that is at most `most`, which is at least 1."""
    return max(size for size in range(1, most + 1) if count % size == 0)


def split(tree, count: int, mesh: Mesh, axis: int = 0):
    """Turns the batch axis [batch] of every leaf into [count, batch / count], with count in front.

    A microbatch has an equal share of every device's samples, so that its batch axis is sharded as
    the whole batch's is. The order of samples changes; `merge` restores it.

    Args:
      tree: arrays with a batch axis.
      count: the number of microbatches.
      mesh: the devices over which the batch is split. On one device the batch is its own share.
      axis: the place of the batch axis.
    """
    devices = 1 if on_one_device() else mesh.size

    def one(array):
        shape = array.shape
        rest = shape[axis + 1 :]
        # Sizes are not left to be inferred: samples of which no step is kept are empty arrays.
        each = shape[axis] // (devices * count)
        array = array.reshape(*shape[:axis], devices, count, each, *rest)
        array = array.swapaxes(axis, axis + 1)
        array = array.reshape(*shape[:axis], count, shape[axis] // count, *rest)
        array = jnp.moveaxis(array, axis, 0)
        return _over_devices(array, mesh, axis + 1)

    return jax.tree.map(one, tree)


def merge(tree, count: int, mesh: Mesh, axis: int = 0):
    """Undoes `split`: [count, ..., batch / count, ...] becomes [..., batch, ...]."""
    devices = 1 if on_one_device() else mesh.size

    def one(array):
        array = jnp.moveaxis(array, 0, axis)
        shape = array.shape
        batch, rest = count * shape[axis + 1], shape[axis + 2 :]
        each = shape[axis + 1] // devices
        array = array.reshape(*shape[:axis], count, devices, each, *rest)
        array = array.swapaxes(axis, axis + 1).reshape(*shape[:axis], batch, *rest)
        return _over_devices(array, mesh, axis)

    return jax.tree.map(one, tree)


def _over_devices(array: jax.Array, mesh: Mesh, axis: int) -> jax.Array:
    """Splits an axis, the batch, over the devices, unless there is one device."""
    if on_one_device():
        return array
    spec = PartitionSpec(*(None,) * axis, BATCH_AXES)
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))


def mean_over_microbatches(function, share, count: int, reductions: Mapping[str, str]):
    """Computes the mean of a function over a device's share of a batch, a microbatch at a time.

    Args:
      function: takes a tree of [samples, ...] arrays and returns a tree of gradients and a dict of
        scalars. A gradient is a mean over the samples, a scalar a mean or the largest value.
      share: a tree of arrays whose first axis is the samples of one device.
      count: the number of microbatches.
      reductions: for each scalar, by name, "mean" or "max".

    Returns:
      What `function` would return for the whole share.
    """
    if count == 1:
        return function(share)
    parts = jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), share)
    shapes, _ = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], parts))

    def add(total, part):
        gradients, scalars = function(part)
        return jax.tree.map(jnp.add, total, gradients), scalars

    none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, scalars = jax.lax.scan(add, none, parts)
    return jax.tree.map(lambda gradient: gradient / count, total), {
        name: values.max() if reductions[name] == "max" else values.mean()
        for name, values in scalars.items()
    }


def map_microbatches(function, tree, count: int, mesh: Mesh):
    """Applies a function to a batch a microbatch at a time, with `lax.map`.

    Args:
      function: takes a tree of [batch, ...] arrays and returns one. It may compare the samples of a
        group of neighbours if a device's part of a microbatch, which is a run of neighbours,
        consists of whole groups; otherwise it must treat each sample by itself.
      tree: a tree of arrays whose first axis is the batch.
      count: the number of microbatches.
      mesh: the devices over which the batch is split.

    Returns:
      What the function would return for the whole batch.
    """
    if count == 1:
        return function(tree)
    return merge(jax.lax.map(function, split(tree, count, mesh)), count, mesh)
