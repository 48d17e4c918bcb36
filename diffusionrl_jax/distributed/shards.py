"""Split parameters that a network gathers itself, a block at a time, where it uses them.

A chip then never holds the whole network. Nor does it hold the whole gradient: a block's gradient
is summed over the devices, and split, as soon as it is known. Zhao et al. call this fully sharded
data parallelism (arXiv 2304.11277).
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from diffusionrl_jax.distributed.mesh import (
    BATCH_AXES,
    FSDP,
    gather_parameters,
    parameter_sharding,
)


@flax.struct.dataclass
class Shard:
    """A split parameter in its place in a tree, which the network that uses it will gather.

    Attributes:
      array: a device's part within `mean_over_devices` and `apply_by_device`, and the whole
        parameter outside of them.
      axis: the axis along which it is split over "fsdp".
      dtype: the dtype in which it is gathered.
    """

    array: jax.Array
    axis: int = flax.struct.field(pytree_node=False)
    dtype: jnp.dtype = flax.struct.field(pytree_node=False)


def is_shard(leaf) -> bool:
    """Returns whether a leaf of a tree is a `Shard`."""
    return isinstance(leaf, Shard)


def shards(params, mesh: Mesh, dtype=None):
    """Marks the split parameters of a tree. The others are left as they are.

    Args:
      params: a tree of parameters.
      mesh: the devices over which they are split, by the rule of `parameter_sharding`.
      dtype: the dtype in which kernels are gathered; None means their own, which all other
        parameters keep.

    Returns:
      The tree with a `Shard` in place of each split parameter.
    """

    def mark(path, leaf):
        spec = parameter_sharding(mesh, leaf).spec
        if FSDP not in spec:
            return leaf
        cast = dtype is not None and path[-1].key == "kernel"
        return Shard(leaf, spec.index(FSDP), jnp.dtype(dtype) if cast else leaf.dtype)

    return jax.tree.map_with_path(mark, params)


def gathered(params, mesh: Mesh, dtype=None, *, by_blocks: bool):
    """Brings a network's split parameters together, or leaves that to the network.

    Args:
      params: a tree of parameters.
      mesh: the devices over which they are split.
      dtype: what the network computes in, as in `gather_parameters`.
      by_blocks: whether the network gathers them itself, one block at a time.

    Returns:
      The tree whole on every device, or with a `Shard` in place of each split parameter.
    """
    return (shards if by_blocks else gather_parameters)(params, mesh, dtype)


def has_shards(tree) -> bool:
    """Returns whether a tree has any `Shard`."""
    return any(map(is_shard, jax.tree.leaves(tree, is_leaf=is_shard)))


def partition(tree):
    """Returns how a tree is passed to the devices: only shards are split."""
    one = lambda leaf: PartitionSpec(*(None,) * leaf.axis, FSDP) if is_shard(leaf) else None
    return jax.tree.map(lambda leaf: one(leaf) or PartitionSpec(), tree, is_leaf=is_shard)


def apply_by_device(function, params, batch, mesh: Mesh, is_split: bool = True):
    """Applies a function in which networks may gather their own parameters.

    Where there are shards among the parameters, every device applies it to its share of the batch,
    and sees itself alone. Where there are none, it is applied to the whole batch.

    Args:
      function: takes (params, batch), and returns a tree of [batch, ...] arrays, in which each
        sample follows from its own row of the batch alone. It gathers the shards.
      params: all that every sample needs, a tree with `Shard`s.
      batch: a tree of [batch, ...] arrays.
      mesh: the devices.
      is_split: whether the batch is split over the devices, and what is returned. Otherwise every
        device has all of it.

    Returns:
      What the function returns for the whole batch.
    """
    if not has_shards(params):
        return function(params, batch)
    rows = PartitionSpec(BATCH_AXES) if is_split else PartitionSpec()
    return jax.shard_map(
        function, mesh=mesh, in_specs=(partition(params), rows), out_specs=rows, check_vma=False
    )(params, batch)


def gather_shards(tree, after: jax.Array | None = None):
    """Gathers the shards in a tree, on a device that sees itself alone.

    The gradients of the whole parameters become those of the shards, summed over "fsdp" in the
    dtype that the shards are kept in.

    Args:
      tree: a tree with a `Shard` in place of each split parameter.
      after: an array before whose computation nothing is gathered. Without one, parameters that do
        not change within a loop would be gathered before it, and all blocks' would be held at once.

    Returns:
      The tree with arrays in place of shards.
    """
    after = None if after is None else jax.lax.stop_gradient(after)

    def one(leaf):
        if not is_shard(leaf):
            return leaf
        return _gather_shard(leaf.array, after, leaf.axis, leaf.dtype, leaf.array.dtype)

    return jax.tree.map(one, tree, is_leaf=is_shard)


def _gather_forward(array, after, axis, dtype, kept):
    del kept
    if after is not None:
        array, _ = jax.lax.optimization_barrier((array, after))
    return jax.lax.all_gather(array.astype(dtype), FSDP, axis=axis, tiled=True), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _gather_shard(*arguments):
    return _gather_forward(*arguments)[0]


def _gather_backward(axis, dtype, kept, residuals, gradient):
    del dtype, residuals
    # In bfloat16 the gradient would lose digits with every device that it is summed over.
    gradient = gradient.astype(kept)
    gradient = jax.lax.psum_scatter(gradient, FSDP, scatter_dimension=axis, tiled=True)
    return gradient, None


_gather_shard.defvjp(_gather_forward, _gather_backward)


def add(parameter, change: jax.Array):
    """Adds a change, of the whole parameter's shape, to a parameter or to a shard of it."""
    if not is_shard(parameter):
        return (parameter + change).astype(parameter.dtype)
    length = parameter.array.shape[parameter.axis]
    start = jax.lax.axis_index(FSDP) * length
    part = jax.lax.dynamic_slice_in_dim(change, start, length, parameter.axis)
    array = (parameter.array + part).astype(parameter.array.dtype)
    return parameter.replace(array=array)


def keeps_all_but_gathered(primitive, *_, **__) -> bool:
    """A policy of `jax.checkpoint` that keeps all that is computed, and gathers parameters again.

    It does not recognise what is computed from gathered parameters alone, such as a transposed
    kernel, which would be kept: multiply with the gathered parameters themselves.
    """
    return primitive is not jax.lax.all_gather_p
