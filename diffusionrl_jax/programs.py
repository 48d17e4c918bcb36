"""What every program shares: what goes wrong ends it with one clear line."""

import contextlib
import logging as standard_logging
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence

import jax
from absl import app, logging

from diffusionrl_jax.distributed import processes

BAD_INPUT = (ValueError, OSError, FloatingPointError)
# How an error of JAX's runtime begins where another process is gone: some calls raise it as a
# ValueError. TensorStore does so, too, of a broken file: DATA_LOSS or FAILED_PRECONDITION.
RUNTIME_STATUS = re.compile("(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): ")


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a program's main function, after its flags."""
    logging.get_absl_handler().addFilter(_is_for_the_user)
    app.run(main, flags_parser=_parse_flags)


def _is_for_the_user(record: standard_logging.LogRecord) -> bool:
    """Whether to show a message: Orbax and others tell dozens with every checkpoint."""
    ours = pathlib.Path(record.pathname).is_relative_to(pathlib.Path(__file__).parent)
    return ours or record.levelno > standard_logging.INFO


def _parse_flags(arguments: Sequence[str]) -> list[str]:
    try:
        with clear_errors():
            return app.parse_flags_with_usage(arguments)
    except AttributeError as error:  # Raised by ml_collections, with no more than the field's name.
        sys.exit(f"error: the config has no such field: {_line(error)}; see configs/common.py.")


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Turns bad input into one line and exit status 1; `--verbosity=1` shows where it arose.

    Of several processes, one in which anything else goes wrong ends at once, too.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        is_joined = jax.distributed.is_initialized()
        # What several processes wait for in vain is a lost one.
        in_vain = isinstance(error, TimeoutError) or RUNTIME_STATUS.match(str(error))
        is_lost = is_joined and in_vain
        if isinstance(error, BAD_INPUT) and not is_lost:
            logging.debug("The error arose here:", exc_info=True)
            processes.fail(f"error: {_line(error)}")
        if not is_joined:
            raise
        traceback.print_exc()
        processes.fail(
            f"error: this process cannot go on ({_line(error)[:300]}). If it lost another process, "
            "that one's log says why. The same command, started again on all, goes on from the "
            "last checkpoint."
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
