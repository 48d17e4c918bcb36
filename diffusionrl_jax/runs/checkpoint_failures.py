"""A save that fails: what said so, and what it leaves behind."""

import re
import time

from etils import epath

UNFINISHED = re.compile(r"\d+\.orbax-checkpoint-tmp.*")
# How TensorStore says what the file system said.
TENSORSTORE_STATUS = re.compile(r"[A-Z]+(_[A-Z]+)*: ")


def is_of_the_file_system(error: Exception) -> bool:
    """Whether the file system refused something, through whichever library."""
    is_tensorstores = isinstance(error, ValueError) and TENSORSTORE_STATUS.match(str(error))
    return isinstance(error, OSError) or bool(is_tensorstores)


def remove_unfinished(directory: epath.Path) -> bool:
    """Removes what no save has completed; returns whether there was anything."""
    unfinished = [path for path in directory.iterdir() if UNFINISHED.fullmatch(path.name)]
    for path in unfinished:
        path.rmtree()
    return bool(unfinished)


def remove_what_is_still_written(directory: epath.Path) -> None:
    """Removes what a failed save left, until nothing has come after it for a second.

    Orbax waits for the first of a save's threads that fails, not for the others.
    """
    deadline, quiet = time.monotonic() + 10, 0
    while quiet < 5 and time.monotonic() < deadline:
        try:
            quiet = 0 if remove_unfinished(directory) else quiet + 1
        except OSError:  # It was written to while it was removed.
            quiet = 0
        time.sleep(0.2)


def reason(error: Exception) -> str:
    """What the file system said, without what a library says around it."""
    said = re.search(r"([^:]*) \[os_error_code=", str(error))
    return getattr(error, "strerror", None) or (said and said[1].strip()) or first_line(error)


def first_line(error: Exception) -> str:
    """An error's kind and the beginning of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
