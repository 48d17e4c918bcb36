"""Imports what a config names as `package.module:attribute`, and reports the errors of its code."""

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
    """Returns the attribute of a module that is imported from Python's path.

    Args:
      name: the module and the attribute, as in "my_rewards:redness" or "package.module:Redness".

    Raises:
      UserError: the name is not written so, or the module or its attribute cannot be imported,
        whatever error the module raises.
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

    SystemExit is turned, too: it would end a run with a status of its own, and without a message.
    An interrupt is the user's, and passes.

    Args:
      what: what has failed; the message begins with it.
      mend: the end of the message where no line of that code is to blame. Elsewhere the message
        names the line to be mended.

    Raises:
      UserError: anything was raised.
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

    Args:
      what: what is called; the message begins with it.

    Raises:
      UserError: SystemExit was raised.
    """
    try:
        yield
    except SystemExit as error:
        mend = _place(error) or "it"
        raise UserError(f"{what} called sys.exit({error.code!r}): mend {mend}.") from error


def _place(error: BaseException) -> str:
    """Returns the innermost line of somebody else's code that an error came from, if there is one.

    A line of a library counts only where there is no other.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<frozen", *OURS))
    ]
    frames = [frame for frame in frames if not frame.filename.startswith(LIBRARIES)] or frames
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
