"""Finds what a config names as `package.module:attribute`, and answers for what its code does."""

import contextlib
import importlib
import pathlib
import sysconfig
import traceback
from collections.abc import Iterator
from typing import Any

from diffusionrl_jax.mistakes import UserError

OURS = (str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(importlib.__file__).parent))
LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


def resolve(name: str) -> Any:
    """The attribute of a module, imported from Python's path.

    Args:
      name: as in "my_rewards:redness" or "package.module:Redness".

    Raises:
      UserError: it is not written so, or the module or its attribute can't be imported, whatever
        the module does instead.
    """
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise UserError(f"{name!r} is not of the form package.module:name.")
    mend = "mend the name, or put the folder that the module is in on PYTHONPATH"
    with named_errors(f"{name!r} cannot be imported", mend):
        return getattr(importlib.import_module(module), attribute)


@contextlib.contextmanager
def named_errors(what: str, mend: str) -> Iterator[None]:
    """Turns whatever somebody else's code raises into one error that names it and its line.

    SystemExit too, which would end a run with the status that it likes, and without a line. An
    interrupt is the user's.

    Args:
      what: has failed; the message begins with it.
      mend: ends the message where no line of that code is to blame; elsewhere the line is to be
        mended.

    Raises:
      UserError: anything is raised.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        place = _place(error)
        mend = f"mend {place}" if place else mend
        raise UserError(f"{what} ({type(error).__name__}: {error}): {mend}.") from error


@contextlib.contextmanager
def without_exit(what: str) -> Iterator[None]:
    """Turns sys.exit in somebody else's code into an error that names it.

    Raises:
      UserError: SystemExit is raised.
    """
    try:
        yield
    except SystemExit as error:
        mend = _place(error) or "it"
        raise UserError(f"{what} called sys.exit({error.code!r}): mend {mend}.") from error


def _place(error: BaseException) -> str:
    """The innermost line of that code which an error came from, rather than one of a library."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<frozen", *OURS))
    ]
    frames = [frame for frame in frames if not frame.filename.startswith(LIBRARIES)] or frames
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
