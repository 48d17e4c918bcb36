"""Means of gradients over the devices."""

from collections.abc import Mapping

import jax
from jax.sharding import Mesh, PartitionSpec

from diffusionrl_jax.distributed.mesh import BATCH_AXES, FSDP, parameter_sharding
from diffusionrl_jax.distributed.shards import is_shard, partition


def mean_over_devices(function, params, mesh: Mesh, reductions: Mapping[str, str]):
    """Lets every device compute a gradient of its share of a batch, and takes the mean once.

    Left to itself, the compiler sums every microbatch's gradient over the devices, in the dtype
    that it is computed in, and computes it in as many pieces as it is then split into.

    Args:
      function: takes (whole, share): arrays that every device has whole, except that of each
        `Shard` it has its own part, and the device's share of the batch. Returns the gradients with
        respect to `params`, of their shapes and dtypes, and a dict of scalars. It sees one device
        alone, but gathers the shards. A gradient that is a `Shard` itself has already been summed
        over "fsdp".
      params: what the gradients are taken with respect to, or its shapes.
      mesh: the devices.
      reductions: for each scalar, by name, "mean" or "max".

    Returns:
      A function of (whole, batch) that splits the first axis of the batch's arrays over the
      devices, and returns the gradients' mean, split by the rule of `parameter_sharding`, and the
      scalars.
    """

    def mean(gradient):
        if is_shard(gradient):
            spec, gradient = (FSDP,), gradient.array
        elif FSDP in (spec := parameter_sharding(mesh, gradient).spec):
            axis = spec.index(FSDP)
            gradient = jax.lax.psum_scatter(gradient, FSDP, scatter_dimension=axis, tiled=True)
        others = tuple(axis for axis in BATCH_AXES if axis not in spec and mesh.shape[axis] > 1)
        return jax.lax.psum(gradient, others) / mesh.size

    def local(whole, share):
        gradients, scalars = function(whole, share)
        scalars = {
            name: (jax.lax.pmax if reductions[name] == "max" else jax.lax.pmean)(value, BATCH_AXES)
            for name, value in scalars.items()
        }
        return jax.tree.map(mean, gradients, is_leaf=is_shard), scalars

    split = jax.tree.map(lambda sharding: sharding.spec, parameter_sharding(mesh, params))

    def of_all(whole, batch):
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(partition(whole), PartitionSpec(BATCH_AXES)),
            out_specs=(split, PartitionSpec()),
            check_vma=False,
        )(whole, batch)

    return of_all
