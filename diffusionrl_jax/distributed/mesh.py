"""The device mesh and the sharding rules."""

import math

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from diffusionrl_jax.mistakes import UserError

DATA, FSDP = "data", "fsdp"
BATCH_AXES = (DATA, FSDP)
REPLICATED_BYTES = 2**20  # smaller parameters are not worth an all-gather


def make_mesh(
    fsdp: int = 1,
    devices: list[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Mesh:
    """A mesh of axes ("data", "fsdp") over all devices.

    Args:
      fsdp: over how many devices each large parameter is split.
      devices: all of the program's if None.

    Raises:
      UserError: if fsdp does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        divisors = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise UserError(f"mesh.fsdp={fsdp} must be one of {divisors}: it divides the devices.")
    return Mesh(np.asarray(devices).reshape(-1, fsdp), BATCH_AXES)


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Splits a batch axis over every device; the axes before it are whole."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_sharding(mesh: Mesh, tree):
    """Shardings of a tree of parameters, optimiser slots, or their shapes.

    An array of at least 1 MiB is split over "fsdp" along its largest divisible dimension; a smaller
    one is replicated. Optimiser slots have their parameters' shapes, hence their shardings.
    """
    return jax.tree.map(lambda leaf: _parameter_sharding(leaf, mesh), tree)


def _parameter_sharding(leaf, mesh: Mesh) -> NamedSharding:
    ways = mesh.shape[FSDP]
    size = math.prod(leaf.shape) * leaf.dtype.itemsize
    divisible = [axis for axis, length in enumerate(leaf.shape) if length % ways == 0]
    if ways == 1 or size < REPLICATED_BYTES or not divisible:
        return replicated(mesh)
    axis = max(divisible, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, FSDP))


def gather_parameters(params, mesh: Mesh, dtype=None, uncast=()):
    """Brings the split parameters of a network together on every device, before it is used.

    Left to itself the compiler gathers them again in every turn of a loop, or multiplies with the
    parts and sends what comes out around the devices.

    Args:
      params: a tree of parameters.
      mesh: over which they are split. Unsplit ones are left as they are.
      dtype: what the network computes in: kernels are cast to it, as they are when they are
        multiplied, which halves the bytes in bfloat16 and changes no result. None casts nothing.
      uncast: the paths of kernels that something is added to before they are multiplied.
    """

    def gather(path, leaf):
        if _parameter_sharding(leaf, mesh).is_fully_replicated:
            return leaf
        names = tuple(entry.key for entry in path)
        if dtype is not None and names[-1] == "kernel" and names not in uncast:
            leaf = leaf.astype(dtype)
        return jax.lax.with_sharding_constraint(leaf, replicated(mesh))

    return jax.tree.map_with_path(gather, params)


def frozen_sharding(mesh: Mesh, tree, split: bool):
    """Shardings of parameters that training does not change.

    Args:
      mesh: the devices.
      tree: parameters or their shapes.
      split: by the rule of `parameter_sharding`; otherwise every device has all of them.
    """
    if split:
        return parameter_sharding(mesh, tree)
    return jax.tree.map(lambda _: replicated(mesh), tree)


def local_slices(sharding: NamedSharding, length: int) -> list[slice]:
    """The parts of an array's first axis that this process' devices hold, each once, in order."""
    indices = sharding.addressable_devices_indices_map((length,)).values()
    starts = {index[0].indices(length)[:2] for index in indices if index is not None}
    return [slice(*part) for part in sorted(starts)]


def place(tree, sharding):
    """Puts host arrays onto the devices; nothing is sent around.

    Args:
      tree: of NumPy arrays of the global shape, alike in every process where its devices hold
        them; other parts are not read.
      sharding: of all of them, or a tree of one for each.
    """
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, tree)

    def one(leaf, sharding):
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(one, tree, sharding)


def abstract_arrays(shapes, shardings):
    """A tree of `jax.ShapeDtypeStruct` with shardings, a tree of them or one for all leaves."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    one = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(one, shapes, shardings)


def check_batch(name: str, batch: int, mesh: Mesh | AbstractMesh, group: int = 1) -> None:
    """Refuses a batch that does not divide over the devices or into whole groups.

    Raises:
      UserError: names the field, and the nearest batches that would do.
    """
    unit = math.lcm(mesh.size, group)
    if batch < 1 or batch % unit:
        below, above = batch // unit * unit, (batch // unit + 1) * unit
        choices = f"{below} or {above}" if below > 0 else f"{above}"
        raise UserError(
            f"{name}={batch} must be a multiple of {unit} ({mesh.size} devices, groups of "
            f"{group}): use {choices}."
        )
