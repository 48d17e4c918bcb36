"""The device mesh and the sharding rules."""

import math

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from diffusionrl_jax.mistakes import UserError

DATA, FSDP = "data", "fsdp"
BATCH_AXES = (DATA, FSDP)
REPLICATED_BYTES = 2**20  # Smaller parameters are not worth an all-gather.


def make_mesh(
    fsdp: int = 1,
    devices: list[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Mesh:
    """Makes a mesh of axes ("data", "fsdp") over all devices.

    Args:
      fsdp: over how many devices each large parameter is split.
      devices: the devices of the mesh; None means all of the program's.

    Raises:
      UserError: fsdp does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    check_split(fsdp, len(devices))
    return Mesh(np.asarray(devices).reshape(-1, fsdp), BATCH_AXES)


def check_split(fsdp: int, devices: int) -> None:
    """Refuses a number of parts that does not divide the number of devices.

    Raises:
      UserError: it does not; the message names those that do.
    """
    if fsdp < 1 or devices % fsdp:
        divisors = [n for n in range(1, devices + 1) if devices % n == 0]
        raise UserError(f"mesh.fsdp={fsdp} must be one of {divisors}: it divides the devices.")


def slice_of(device) -> int:
    """Returns the number of the slice that a device is of, which is 0 where there are none."""
    return getattr(device, "slice_index", 0)


def spans_slices(mesh: Mesh) -> bool:
    """Returns whether parameters are split over devices of several slices."""
    return any(len(set(map(slice_of, row))) > 1 for row in mesh.devices)


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding that splits one axis, the batch, over every device and no other axis."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts the same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_sharding(mesh: Mesh, tree):
    """Returns the shardings of a tree of parameters, of optimiser slots, or of their shapes.

    An array of at least 1 MiB is split over "fsdp" along its largest dimension that divides evenly;
    any other array is replicated. Optimiser slots have the shapes of their parameters, hence their
    shardings.
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


def undivided_share(mesh: Mesh, tree) -> float:
    """Returns what part of a tree's bytes is whole on every device though it is large.

    It is that of the arrays of at least 1 MiB of which "fsdp" divides no dimension.
    """
    leaves = jax.tree.leaves(tree)
    sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves]
    whole = sum(
        size
        for leaf, size in zip(leaves, sizes, strict=True)
        if size >= REPLICATED_BYTES and _parameter_sharding(leaf, mesh).is_fully_replicated
    )
    return whole / sum(sizes) if mesh.shape[FSDP] > 1 and whole else 0.0


def on_one_device() -> bool:
    """Returns whether what is traced is what each device computes by itself, within `shard_map`."""
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def gather_parameters(params, mesh: Mesh, dtype=None, uncast=()):
    """Brings the split parameters of a network together on every device, before they are used.

    Left to itself, the compiler gathers them again in every turn of a loop, or multiplies with the
    parts and sends the products around the devices.

    Args:
      params: a tree of parameters.
      mesh: the devices over which they are split. Parameters that are not split are left as they
        are.
      dtype: what the network computes in. Kernels are cast to it, as they would be when they are
        multiplied: in bfloat16 this halves the bytes sent, and it changes no result. None casts
        nothing.
      uncast: the paths of kernels that are not cast, because something is added to them before they
        are multiplied.
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
    """Returns the shardings of parameters that training does not change.

    Args:
      mesh: the devices.
      tree: the parameters, or their shapes.
      split: whether they are split by the rule of `parameter_sharding`; otherwise every device has
        all of them.
    """
    if split:
        return parameter_sharding(mesh, tree)
    return jax.tree.map(lambda _: replicated(mesh), tree)


def local_slices(sharding: NamedSharding, length: int) -> list[slice]:
    """Returns the parts of an array's first axis that this process' devices hold.

    They are in order, and each is there once.

    Args:
      sharding: the array's sharding.
      length: the length of its first axis.
    """
    indices = sharding.addressable_devices_indices_map((length,)).values()
    starts = {index[0].indices(length)[:2] for index in indices if index is not None}
    return [slice(*part) for part in sorted(starts)]


def local_rows(*arrays: jax.Array) -> tuple[np.ndarray, ...]:
    """Returns the rows of arrays, split along their first axis, that this process' devices hold.

    Returns:
      The rows' places in the whole arrays, ascending, and these rows of each array.
    """
    by_start = lambda array: {s.index[0].start or 0: s.data for s in array.addressable_shards}
    shards = [by_start(array) for array in arrays]
    starts = sorted(shards[0])
    local = [np.concatenate([np.asarray(parts[s]) for s in starts]) for parts in shards]
    places = [start + np.arange(len(shards[0][start])) for start in starts]
    return np.concatenate(places), *local


def place(tree, sharding):
    """Puts host arrays onto the devices. Nothing is sent between processes.

    Args:
      tree: a tree of NumPy arrays of the global shape. A process reads only the parts that its
        devices hold, and only these need to be right there.
      sharding: one sharding for all of them, or a tree with one for each.
    """
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, tree)

    def one(leaf, sharding):
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(one, tree, sharding)


def abstract_arrays(shapes, shardings):
    """Returns a tree of `jax.ShapeDtypeStruct` with shardings.

    Args:
      shapes: a tree of arrays or their shapes.
      shardings: a tree with one sharding for each leaf, or one for all leaves.
    """
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    one = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(one, shapes, shardings)


def check_batch(name: str, batch: int, mesh: Mesh | AbstractMesh, group: int = 1) -> None:
    """Refuses a batch that does not divide over the devices or into whole groups.

    Args:
      name: what the error calls the batch: its config field.
      batch: the number of samples.
      mesh: the devices.
      group: the number of samples in a group.

    Raises:
      UserError: the batch does not divide; the error names the field and the nearest batches that
        do.
    """
    unit = math.lcm(mesh.size, group)
    if batch < 1 or batch % unit:
        below, above = batch // unit * unit, (batch // unit + 1) * unit
        choices = f"{below} or {above}" if below > 0 else f"{above}"
        raise UserError(
            f"{name}={batch} must be a multiple of {unit} ({mesh.size} devices, groups of "
            f"{group}): use {choices}."
        )
