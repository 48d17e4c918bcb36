"""Digests of arrays, computed where the arrays lie, whatever mesh they are split over.

What is saved can thus be compared with what other processes restore later, onto other devices,
without gathering either.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

PyTree = Any
NOT_FINITE = " not finite"
# Smaller arrays are brought to the host, since each shape's program takes longer to compile.
LEAST_BYTES_ON_DEVICES = 2**22


def digests(tree: PyTree) -> dict[str, str]:
    """Computes a digest of each array of a tree.

    A change of any one element is certain to change the digest; any other change goes unnoticed
    with a probability of about 2^-64. A digest takes one pass over the array, on the devices that
    hold it. It protects against accidents, not against an adversary.

    Args:
      tree: a tree of arrays, JAX's or NumPy's, and numbers. Where there are several processes, all
        of them must call.

    Returns:
      Path in the tree -> 16 hexadecimal digits, which depend on the elements' bits and places
      alone. `NOT_FINITE` follows them where a float among the elements is infinite or NaN.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    keys = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    summaries = jax.device_get([_start(leaf) for _, leaf in leaves])
    return {key: _digest(*summary) for key, summary in zip(keys, summaries, strict=True)}


def not_finite(found: Mapping[str, str]) -> list[str]:
    """Returns the paths of those arrays in `digests` that have a number that is not finite."""
    return [path for path, digest in found.items() if digest.endswith(NOT_FINITE)]


def _digest(summary: np.ndarray, on_device: bool) -> str:
    """Formats a summary, or that of an array which has none yet, as a digest."""
    first, second, finite = summary if on_device else _summary(np, np.asarray(summary))
    return f"{int(first):08x}{int(second):08x}" + ("" if finite else NOT_FINITE)


def _start(leaf) -> tuple[Any, bool]:
    """Starts to summarise an array on its devices, unless it is small or on the host.

    Returns:
      The summary and True, or the array itself and False.
    """
    if not isinstance(leaf, jax.Array):
        return leaf, False
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    is_readable = leaf.is_fully_addressable or leaf.is_fully_replicated
    if is_readable and leaf.nbytes < LEAST_BYTES_ON_DEVICES:
        return leaf, False
    sharding = leaf.sharding
    return _program(sharding.mesh if isinstance(sharding, NamedSharding) else None)(leaf), True


@functools.cache
def _program(mesh: jax.sharding.Mesh | None):
    """Compiles `_summary`; its result is whole on every device of the mesh."""
    whole = None if mesh is None else NamedSharding(mesh, P())
    return jax.jit(functools.partial(_summary, jnp), out_shardings=whole)


def _summary(xp, array):
    """Returns uint32 [3]: two sums over the array, and whether all of it is finite.

    Args:
      xp: the module that computes it, `numpy` or `jax.numpy`; both give the same bits.
      array: an array of that module.
    """
    is_float = jnp.issubdtype(array.dtype, jnp.inexact)
    finite = xp.isfinite(array).all() if is_float else xp.array(True)
    words = (_bits_on_device if xp is jnp else _bits)(array).astype(xp.uint32)
    words = words.reshape(words.shape or (1,))
    place = xp.zeros((1,) * words.ndim, xp.uint32)
    for axis, size in enumerate(words.shape):
        along = xp.arange(size, dtype=xp.uint32)
        along = along.reshape([-1 if each == axis else 1 for each in range(words.ndim)])
        place = place * xp.uint32(size % 2**32) + along
    # At each place this is a bijection of the words: a word that differs changes the first sum and,
    # times an odd factor of the place's own, the second.
    mixed = _mix(xp, words ^ _mix(xp, place))
    second = mixed * (place * xp.uint32(2) + xp.uint32(1))
    sums = mixed.sum(dtype=xp.uint32), second.sum(dtype=xp.uint32)
    return xp.stack([*sums, finite.astype(xp.uint32)])


def _bits_on_device(array: jax.Array) -> jax.Array:
    """Returns the elements as unsigned integers of their own width."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint8)
    return jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}"))


def _bits(array: np.ndarray) -> np.ndarray:
    """Returns the elements as `_bits_on_device` does.

    Elements of more than 32 bits are cut into words of 32 bits, one after another.
    """
    width = min(4, array.dtype.itemsize)
    return np.frombuffer(array.tobytes(), f"<u{width}").reshape(
        array.shape if width == array.dtype.itemsize else -1
    )


def _mix(xp, x):
    """Applies the finaliser of the 32-bit MurmurHash3."""
    x = (x ^ (x >> xp.uint32(16))) * xp.uint32(0x85EBCA6B)
    x = (x ^ (x >> xp.uint32(13))) * xp.uint32(0xC2B2AE35)
    return x ^ (x >> xp.uint32(16))
