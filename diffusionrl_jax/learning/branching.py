"""Splits a batch into parts whose groups branch at one step of their chains.

Axes: T tasks, B samples of each, in groups of G neighbours; P parts of each task's groups.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffusionrl_jax.distributed.mesh import batch_sharding
from diffusionrl_jax.distributed.microbatch import largest_divisor, map_microbatches


def map_groups(
    function: Callable,
    tree,
    indices: jax.Array,
    group: int,
    per_device: int,
    mesh: Mesh,
):
    """Applies a function to groups of samples, a microbatch of one part at a time.

    The parts take a task's groups in turn, so that each device has as many groups of each part.
    Nothing is moved between devices.

    Args:
      function: takes a tree of [groups, G, ...] arrays and their part's index, and returns three
        trees: arrays [groups, G, ...], and twice arrays [groups, ...].
      tree: arrays [T, B, ...]; every device's share of B is a multiple of G * P.
      indices: each part's index, int32 [T, P].
      group: G.
      per_device: how many samples a device takes at a time, at most, but one group at least; 0
        means all of a part.
      mesh: the devices over which B is split.

    Returns:
      What the function returns for all groups, as [T, B, ...], and twice [T, B / G, ...].
    """
    tasks, parts = indices.shape

    def by_part(array):
        each = array.shape[1] // (group * parts)
        array = array.reshape(tasks, each, parts, group, *array.shape[2:])
        array = jnp.moveaxis(array, 2, 1).reshape(tasks * parts, each, group, *array.shape[4:])
        return jax.lax.with_sharding_constraint(array, batch_sharding(mesh, axis=1))

    def of_task(array):
        each = array.shape[1]
        array = jnp.moveaxis(array.reshape(tasks, parts, *array.shape[1:]), 1, 2)
        array = array.reshape(tasks, each * parts, *array.shape[3:])
        return jax.lax.with_sharding_constraint(array, batch_sharding(mesh, axis=1))

    tree = jax.tree.map(by_part, tree)
    share = jax.tree.leaves(tree)[0].shape[1] // mesh.size
    at_once = largest_divisor(share, max(1, per_device // group) if per_device else share)

    def of_part(arguments):
        arrays, index = arguments
        of_groups = lambda arrays: function(arrays, index)
        return map_microbatches(of_groups, arrays, share // at_once, mesh)

    of_samples, *of_groups = jax.lax.map(of_part, (tree, indices.reshape(-1)))
    merge = lambda array: array.reshape(tasks, -1, *array.shape[3:])
    of_samples = jax.tree.map(lambda array: merge(of_task(array)), of_samples)
    return of_samples, *jax.tree.map(of_task, of_groups)
