"""Tells why a save failed, and removes what it leaves behind."""

import os
import re
import time

from etils import epath

UNFINISHED = re.compile(r"\d+\.orbax-checkpoint-tmp.*")
# The beginning of TensorStore's message for an error of the file system.
TENSORSTORE_STATUS = re.compile(r"[A-Z]+(_[A-Z]+)*: ")


class SaveError(OSError):
    """Raised where a checkpoint cannot be saved; the message says how the run continues."""


def is_of_the_file_system(error: Exception) -> bool:
    """Returns whether an error is the file system's, through whichever library it comes."""
    is_tensorstores = isinstance(error, ValueError) and TENSORSTORE_STATUS.match(str(error))
    return isinstance(error, OSError) or bool(is_tensorstores)


def remove_unfinished(directory: epath.Path) -> bool:
    """Removes what no save has completed, and returns whether there was anything."""
    unfinished = [path for path in directory.iterdir() if UNFINISHED.fullmatch(path.name)]
    for path in unfinished:
        path.rmtree()
    return bool(unfinished)


def remove_what_is_still_written(directory: epath.Path) -> None:
    """Removes what a failed save has left, until for a second nothing more appears.

    It waits at most 10 seconds. Orbax waits only for the first of a save's threads that fails; the
    others may still be writing.
    """
    deadline, quiet = time.monotonic() + 10, 0
    while quiet < 5 and time.monotonic() < deadline:
        try:
            quiet = 0 if remove_unfinished(directory) else quiet + 1
        except OSError:  # Something was written while it was removed.
            quiet = 0
        time.sleep(0.2)


def reason(error: Exception) -> str:
    """Returns what the file system said, without what a library puts around it."""
    # TensorStore adds the system's number and more, in an order that changes from run to run.
    number = re.search(r"\[os_error_code='(\d+)'\]", str(error))
    said = getattr(error, "strerror", None) or (number and os.strerror(int(number[1])))
    return said or first_line(error)


def first_line(error: Exception) -> str:
    """Returns an error's kind and the beginning of its message."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
