"""Answers for what somebody else's code does: a config file, a scorer, a reward of one's own."""

import contextlib
import importlib
import pathlib
import sysconfig
import traceback
from collections.abc import Iterator

from diffusionrl_jax.mistakes import UserError

OURS = (str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(importlib.__file__).parent))
LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


@contextlib.contextmanager
def named_errors(what: str, mend: str) -> Iterator[None]:
    """Turns whatever somebody else's code raises into one error that names it and its line.

    That goes for SystemExit too, which would end a run with the status that it likes, and without a
    line. An interrupt is the user's, and stays.

    Args:
      what: says what has failed; the message begins with it.
      mend: the end of the message where no line of that code is to blame. Elsewhere the line is to
        be mended.

    Raises:
      UserError: anything is raised.
    """
    try:
        yield
    except (KeyboardInterrupt, UserError):  # A UserError already says what is wrong.
        raise
    except BaseException as error:
        place = _place(error)
        mend = f"mend {place}" if place else mend
        raise UserError(f"{what} ({type(error).__name__}: {error}): {mend}.") from error


@contextlib.contextmanager
def without_exit(what: str) -> Iterator[None]:
    """Turns sys.exit in somebody else's code into an error that names it.

    Args:
      what: names that code; the message begins with it.

    Raises:
      UserError: SystemExit is raised.
    """
    try:
        yield
    except SystemExit as error:
        mend = _place(error) or "it"
        raise UserError(f"{what} called sys.exit({error.code!r}): mend {mend}.") from error


def _place(error: BaseException) -> str:
    """Returns the innermost line of that code which an error came from, not one of a library."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<frozen", *OURS))
    ]
    frames = [frame for frame in frames if not frame.filename.startswith(LIBRARIES)] or frames
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
