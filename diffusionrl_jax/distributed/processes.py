"""What the processes of a program have to agree on."""

import os
import sys
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from diffusionrl_jax.distributed.mesh import local_rows

T = TypeVar("T")
# Of what is sent to every process each device holds so much at a time.
GATHERED_BYTES = 2**26


def gather(values: np.ndarray) -> np.ndarray:
    """Returns every process' values, [processes, ...]. Where there are several, all must call."""
    if jax.process_count() == 1:
        return values[None]
    return np.asarray(multihost_utils.process_allgather(values))


def gather_rows(array: jax.Array) -> np.ndarray:
    """Returns an array that is split along its first axis over all devices, whole, on every host.

    No device holds more than `GATHERED_BYTES` of it beside its own part, however many there are.
    Where there are several processes, all must call.
    """
    if jax.process_count() == 1:
        return np.asarray(array)
    places, rows = local_rows(array)
    mine, size = rows.reshape(-1).view(np.uint8), GATHERED_BYTES // jax.process_count()
    parts = [gather(mine[start : start + size]) for start in range(0, mine.size, size)]
    whole = np.empty(array.shape, array.dtype)
    told = np.concatenate(parts, axis=1).view(array.dtype)
    for its_places, its_rows in zip(gather(places), told, strict=True):
        whole[its_places] = its_rows.reshape(rows.shape)
    return whole


def true_everywhere(flag: bool) -> bool:
    """Returns whether the flag is true in every process. Where there are several, all must call."""
    return bool(gather(np.array(flag)).all())


def in_turn(function: Callable[[], T]) -> T:
    """Returns the result of a function, which the first process calls before the others do."""
    if jax.process_index() == 0:
        result = function()
        true_everywhere(True)
        return result
    true_everywhere(True)
    return function()


def fail(message: str, status: int = 1) -> None:
    """Ends this process with a line for the user and an exit status.

    One of several processes leaves without the usual clean-up, which would wait for the others
    while they wait for this one. They notice that it is gone, and end as well.
    """
    logging.flush()
    print(message, file=sys.stderr, flush=True)
    if not jax.distributed.is_initialized():
        sys.exit(status)
    os._exit(status)
