"""Looks whether a disk has room for checkpoints, before hours of compute end in an error."""

import math
import shutil

import jax
from absl import logging
from etils import epath

from diffusionrl_jax.data.files import in_bucket, readable_size
from diffusionrl_jax.distributed.processes import true_everywhere
from diffusionrl_jax.runs.checkpoint_failures import SaveError


def free_room(folder: epath.Path) -> float:
    """Returns the bytes that are free where a folder is, or is to be; infinity in a bucket."""
    if in_bucket(folder):
        return math.inf
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_room(folder: epath.Path, size: int, more: int) -> None:
    """Refuses a disk without room for one checkpoint, and warns of one without room for all.

    All processes must call it.

    Args:
      folder: the folder of the checkpoints.
      size: the bytes of one.
      more: how many more than now there will be at most.

    Raises:
      SaveError: there is no room for one. It is raised in all processes alike.
    """
    free = free_room(folder)
    if not true_everywhere(free >= size):
        raise SaveError(
            f"There is no room for a checkpoint in {folder}: one needs {readable_size(size)}, and "
            f"{readable_size(free)} are free. Make room, and the same command goes on."
        )
    if free < more * size and jax.process_index() == 0:
        logging.warning(
            "There is no room for all checkpoints in %s: up to %d more need %s, and %s are free. "
            "Keep fewer (--config.checkpoint.keep_last, --config.checkpoint.keep_best), or make "
            "room.",
            *(folder, more, readable_size(more * size), readable_size(free)),
        )
