"""Splits a sharded batch into microbatches without moving anything between devices."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusionrl_jax.distributed.mesh import BATCH_AXES
from diffusionrl_jax.mistakes import UserError


def microbatch_count(batch: int, per_device: int, devices: int) -> int:
    """Into how many microbatches a batch is split.

    Args:
      batch: number of samples, over all devices.
      per_device: largest number of samples of a device at a time; 0 means all at once.
      devices: number of devices.

    Raises:
      UserError: if the devices' share of the batch is not a multiple of the microbatch.
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
    """The largest divisor of `count` that is at most `most`, itself at least 1."""
    return max(size for size in range(1, most + 1) if count % size == 0)


def split(tree, count: int, mesh: Mesh, axis: int = 0):
    """Turns the batch axis [batch] of every leaf into [count, batch / count], in front of all axes.

    A microbatch has an equal share of every device's samples, so that its batch axis is sharded
    like the whole batch's. The order of samples within is undone by `merge`.
    """

    def one(array):
        shape = array.shape
        rest = shape[axis + 1 :]
        array = array.reshape(*shape[:axis], mesh.size, count, -1, *rest)
        array = array.swapaxes(axis, axis + 1)
        array = array.reshape(*shape[:axis], count, shape[axis] // count, *rest)
        array = jnp.moveaxis(array, axis, 0)
        spec = PartitionSpec(*(None,) * (axis + 1), BATCH_AXES)
        return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))

    return jax.tree.map(one, tree)


def merge(tree, count: int, mesh: Mesh, axis: int = 0):
    """The inverse of `split`: [count, ..., batch / count, ...] becomes [..., batch, ...]."""

    def one(array):
        array = jnp.moveaxis(array, 0, axis)
        shape = array.shape
        batch, rest = count * shape[axis + 1], shape[axis + 2 :]
        array = array.reshape(*shape[:axis], count, mesh.size, -1, *rest)
        array = array.swapaxes(axis, axis + 1).reshape(*shape[:axis], batch, *rest)
        spec = PartitionSpec(*(None,) * axis, BATCH_AXES)
        return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))

    return jax.tree.map(one, tree)


def mean_over_microbatches(function, share, count: int, reductions: Mapping[str, str]):
    """`function` of a device's share of a batch, computed a microbatch at a time: the mean.

    Args:
      function: from a tree of [samples, ...] arrays to a tree of gradients and a dict of scalars,
        each a mean over the samples, or the largest of them.
      share: arrays whose first axis is the samples of one device.
      count: number of microbatches.
      reductions: of each scalar, "mean" or "max".

    Returns:
      What `function` gives, of all of the share.
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
    """`function` of a batch, computed a microbatch at a time with `lax.map`.

    Args:
      function: from a tree of [batch, ...] arrays to a tree of [batch, ...] arrays. It may compare
        the samples of a group of neighbours if a device's part of a microbatch, a run of
        neighbours, is whole groups; else it takes each sample by itself.
      tree: arrays whose first axis is the batch.
      count: number of microbatches.
      mesh: over which the batch is sharded.
    """
    if count == 1:
        return function(tree)
    return merge(jax.lax.map(function, split(tree, count, mesh)), count, mesh)
