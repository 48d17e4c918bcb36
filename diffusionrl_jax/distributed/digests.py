"""Digests of arrays, computed where the arrays lie, whatever mesh they are split over.

What is saved and what is restored later, by other processes onto other devices, can so be compared
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
    """A digest of each array of a tree: a change of any one element changes it for certain.

    Any other change goes unnoticed with a probability of about 2^-64. It is one pass over the
    array, by the devices that hold it. It protects from accidents, not from an adversary.

    Args:
      tree: of arrays, JAX's or NumPy's, and numbers; where there are several processes, all must
        call.

    Returns:
      Path in the tree -> 16 hexadecimal digits, which depend on the elements' bits and places
      alone, with `NOT_FINITE` behind them where a float among them is infinite or not a number.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    keys = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    summaries = jax.device_get([_start(leaf) for _, leaf in leaves])
    return {key: _digest(*summary) for key, summary in zip(keys, summaries, strict=True)}


def not_finite(found: Mapping[str, str]) -> list[str]:
    """Which arrays of `digests` have a number that is not finite."""
    return [path for path, digest in found.items() if digest.endswith(NOT_FINITE)]


def _digest(summary: np.ndarray, on_device: bool) -> str:
    first, second, finite = summary if on_device else _summary(np, np.asarray(summary))
    return f"{int(first):08x}{int(second):08x}" + ("" if finite else NOT_FINITE)


def _start(leaf) -> tuple[Any, bool]:
    """The array's summary, or the array itself if it is small, still on its way to the host."""
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
    whole = None if mesh is None else NamedSharding(mesh, P())
    return jax.jit(functools.partial(_summary, jnp), out_shardings=whole)


def _summary(xp, array):
    """uint32 [3]: two sums over the array, and whether all of it is finite."""
    is_float = jnp.issubdtype(array.dtype, jnp.inexact)
    finite = xp.isfinite(array).all() if is_float else xp.array(True)
    words = (_bits_on_device if xp is jnp else _bits)(array).astype(xp.uint32)
    words = words.reshape(words.shape or (1,))
    place = xp.zeros((1,) * words.ndim, xp.uint32)
    for axis, size in enumerate(words.shape):
        along = xp.arange(size, dtype=xp.uint32)
        along = along.reshape([-1 if each == axis else 1 for each in range(words.ndim)])
        place = place * xp.uint32(size % 2**32) + along
    # At each place a bijection of the words, so that one that differs changes the first sum, and
    # by an odd factor of the place's own the second.
    mixed = _mix(xp, words ^ _mix(xp, place))
    second = mixed * (place * xp.uint32(2) + xp.uint32(1))
    sums = mixed.sum(dtype=xp.uint32), second.sum(dtype=xp.uint32)
    return xp.stack([*sums, finite.astype(xp.uint32)])


def _bits_on_device(array: jax.Array) -> jax.Array:
    """The elements as unsigned integers of their own width."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint8)
    return jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}"))


def _bits(array: np.ndarray) -> np.ndarray:
    """The same; of more than 32 bits, the parts of each element one after another."""
    width = min(4, array.dtype.itemsize)
    return np.frombuffer(array.tobytes(), f"<u{width}").reshape(
        array.shape if width == array.dtype.itemsize else -1
    )


def _mix(xp, x):
    """MurmurHash3's finaliser of 32 bits."""
    x = (x ^ (x >> xp.uint32(16))) * xp.uint32(0x85EBCA6B)
    x = (x ^ (x >> xp.uint32(13))) * xp.uint32(0xC2B2AE35)
    return x ^ (x >> xp.uint32(16))
