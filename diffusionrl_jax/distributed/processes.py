"""What the processes of a program have to agree on."""

import os
import sys
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

T = TypeVar("T")


def gather(values: np.ndarray) -> np.ndarray:
    """Returns every process' values, [processes, ...]. Where there are several, all must call."""
    if jax.process_count() == 1:
        return values[None]
    return np.asarray(multihost_utils.process_allgather(values))


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
