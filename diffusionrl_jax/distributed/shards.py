"""Split parameters that a network brings together itself, a block at a time, where it uses them.

A chip then holds no whole network. Nor does it hold a whole gradient: what a block's parameters are
differentiated by is summed over the devices, and cut up, as soon as it is known. This is what Zhao
et al. call fully sharded data parallelism (arXiv 2304.11277).
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from diffusionrl_jax.distributed.mesh import FSDP, parameter_sharding


@flax.struct.dataclass
class Shard:
    """A split parameter in its place in a tree, to be gathered by the network that it is of.

    Attributes:
      array: a device's part within `mean_over_devices`; all of it outside.
      axis: along which it is split over "fsdp".
      dtype: in which it is gathered.
    """

    array: jax.Array
    axis: int = flax.struct.field(pytree_node=False)
    dtype: jnp.dtype = flax.struct.field(pytree_node=False)


def is_shard(leaf) -> bool:
    """Whether a part of a tree is a `Shard`."""
    return isinstance(leaf, Shard)


def shards(params, mesh: Mesh, dtype=None):
    """Marks the split parameters of a tree; the others are left as they are.

    Args:
      params: a tree of parameters.
      mesh: over which they are split, by the rule of `parameter_sharding`.
      dtype: of kernels, as of `gather_parameters`.

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


def has_shards(tree) -> bool:
    """Whether anything in a tree is to be gathered."""
    return any(map(is_shard, jax.tree.leaves(tree, is_leaf=is_shard)))


def partition(tree):
    """How `mean_over_devices` passes a tree to each device: shards split, all else whole."""
    one = lambda leaf: PartitionSpec(*(None,) * leaf.axis, FSDP) if is_shard(leaf) else None
    return jax.tree.map(lambda leaf: one(leaf) or PartitionSpec(), tree, is_leaf=is_shard)


def gather_shards(tree, after: jax.Array | None = None):
    """Brings the shards in a tree together, on a device that sees itself alone.

    Gradients of the whole parameters become those of the shards, summed over "fsdp" in the dtype
    that the shards are kept in.

    Args:
      tree: with a `Shard` for each split parameter.
      after: an array before which nothing is gathered. Without one, what does not change within a
        loop would be gathered before it, and all blocks' parameters would be held at once.

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
    # In bfloat16 it would lose digits with every device that it is summed over.
    gradient = gradient.astype(kept)
    gradient = jax.lax.psum_scatter(gradient, FSDP, scatter_dimension=axis, tiled=True)
    return gradient, None


_gather_shard.defvjp(_gather_forward, _gather_backward)


def add(parameter, change: jax.Array):
    """A parameter, or a shard of it, with a change of the whole one's shape."""
    if not is_shard(parameter):
        return (parameter + change).astype(parameter.dtype)
    length = parameter.array.shape[parameter.axis]
    start = jax.lax.axis_index(FSDP) * length
    part = jax.lax.dynamic_slice_in_dim(change, start, length, parameter.axis)
    array = (parameter.array + part).astype(parameter.array.dtype)
    return parameter.replace(array=array)


def keeps_all_but_gathered(primitive, *_, **__) -> bool:
    """A policy of `jax.checkpoint`: nothing is computed again, but parameters gathered again.

    It knows not what is made of gathered parameters alone, such as a transposed kernel: multiply
    with these themselves.
    """
    return primitive is not jax.lax.all_gather_p
