"""What of a train state a checkpoint holds, and whether the same comes back."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from diffusionrl_jax.distributed.digests import digests, not_finite
from diffusionrl_jax.runs.checkpoint_records import DamagedError

PyTree = Any


def size_of(state: PyTree) -> int:
    """Returns the bytes of all arrays of a state, or of its shapes, before they are compressed."""
    size = lambda leaf: math.prod(np.shape(leaf)) * jnp.result_type(leaf).itemsize
    return sum(map(size, jax.tree.leaves(state)))


def check_digests(restored: PyTree, record: Mapping[str, Any] | None) -> None:
    """Compares what was restored with what was saved. All processes must call it.

    Args:
      restored: a state, in which `ocp.PLACEHOLDER` stands for what was not read.
      record: what `read_record` returned; without one, only finiteness is checked.

    Raises:
      DamagedError: the two differ, or a number is not finite.
    """
    found = digests(jax.tree.map(lambda leaf: None if leaf is ocp.PLACEHOLDER else leaf, restored))
    if broken := not_finite(found):
        raise DamagedError(f"{broken[0]} is not finite")
    if record is None:
        return
    changed = [path for path, digest in found.items() if record["digests"].get(path) != digest]
    if changed:
        raise DamagedError(
            f"{changed[0]} is not what was saved, by its digest; {len(changed)} of {len(found)} "
            "arrays are not"
        )


def without_empty(tree: PyTree) -> PyTree:
    """Returns the tree with None in place of arrays without elements, which Orbax refuses."""
    return jax.tree.map(lambda leaf: leaf if math.prod(np.shape(leaf)) else None, tree)


def fill_empty(expected, restored):
    """Returns a restored leaf; an array without elements, which was not saved, is made anew.

    Args:
      expected: the leaf's shape, dtype and sharding.
      restored: an array, `ocp.PLACEHOLDER`, or None for what was not saved.

    Raises:
      DamagedError: the array has another shape or dtype.
    """
    if restored is ocp.PLACEHOLDER or expected is None:
        return restored
    if restored is not None:
        # Orbax compares no dtypes, and the shapes of sharded arrays only.
        found = np.shape(restored), jax.dtypes.result_type(restored)
        if found != (expected.shape, expected.dtype):
            raise DamagedError(
                f"an array is {found[1]} {found[0]} instead of {expected.dtype} {expected.shape}"
            )
        return restored
    return jax.device_put(
        jnp.zeros(expected.shape, expected.dtype), getattr(expected, "sharding", None)
    )
