"""What every program shares: bad input ends it with one clear line, not with a traceback."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import app, logging


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a program's main function, after its flags."""
    app.run(main, flags_parser=_parse_flags)


def _parse_flags(arguments: Sequence[str]) -> list[str]:
    try:
        with clear_errors():
            return app.parse_flags_with_usage(arguments)
    except AttributeError as error:  # Raised by ml_collections, with no more than the field's name.
        sys.exit(f"error: the config has no such field: {_line(error)}; see configs/common.py.")


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Turns bad input into one line and exit status 1; `--verbosity=1` shows where it arose."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        logging.debug("The error arose here:", exc_info=True)
        sys.exit(f"error: {_line(error)}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
