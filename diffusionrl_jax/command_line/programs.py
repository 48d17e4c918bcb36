"""Runs every program in the same way: what goes wrong ends it with one clear line."""

import contextlib
import importlib
import logging as standard_logging
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from absl import app, flags, logging

from diffusionrl_jax.command_line.configs import FLAG, check_config, config_arguments
from diffusionrl_jax.distributed import processes
from diffusionrl_jax.mistakes import UserError, suggestion

# Errors of what the machine refuses, what a run cannot go on with, and what a person can mend.
BAD_INPUT = (UserError, OSError, FloatingPointError)


def run(main: Callable[[Sequence[str]], None], arguments: list[str] | None = None) -> None:
    """Runs a program's main function, after it has read the program's flags.

    Args:
      main: the program's main function.
      arguments: the program's name and its flags; None for those of the command line.
    """
    logging.get_absl_handler().addFilter(_is_for_the_user)
    sys.unraisablehook = quiet_unraisablehook
    app.run(main, argv=arguments, flags_parser=_parse_flags)


def run_command(
    program: str, commands: Sequence[str], package: str, text: str | None, extra: str = ""
) -> None:
    """Passes the command line to the module of the command that it begins with.

    Args:
      program: the program's name.
      commands: the names of its commands.
      package: the package with a module of that name for each, which has its own flags and `main`.
      text: what is shown where there is no command, or --help.
      extra: the extra of setup.cfg whose libraries the commands need, if there is one.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("", "--help", "-h"):
        sys.exit(text)
    with clear_errors():
        if name not in commands:
            raise UserError(f"{program} has no command {name!r}: {suggestion(name, commands)}")
        try:
            module = importlib.import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            if not extra or str(error.name).startswith(package.partition(".")[0]):
                raise
            raise UserError(
                f"{program} needs the library {error.name}: install the extra {extra!r} of this "
                f"package, as in pip install -e '.[{extra}]'."
            ) from None
    run(module.main, [f"{program} {name}", *sys.argv[2:]])


def _is_for_the_user(record: standard_logging.LogRecord) -> bool:
    """Returns whether to show a message: Orbax and others log dozens with every checkpoint."""
    path = pathlib.Path(record.pathname)
    ours = path.is_relative_to(pathlib.Path(__file__).parents[1])
    # Orbax also raises what it fails in, which is then told in one line.
    is_orbax = "orbax" in path.parts or record.name == "asyncio"
    return ours or (record.levelno > standard_logging.INFO and not is_orbax)


def quiet_unraisablehook(unraisable: Any) -> None:
    """Does as `sys.__unraisablehook__`, but is silent about readings that Orbax has given up.

    In a damaged checkpoint every array fails. The first to fail is raised and ends the reading, and
    each of the others would print a traceback.
    """
    code = getattr(unraisable.object, "cr_code", None)
    frames = traceback.extract_tb(unraisable.exc_traceback)
    files = [frame.filename for frame in frames] + ([code.co_filename] if code else [])
    if not any({"orbax", "asyncio"} & set(pathlib.Path(file).parts) for file in files):
        sys.__unraisablehook__(unraisable)


def _parse_flags(arguments: Sequence[str]) -> list[str]:
    with clear_errors():
        # The program convert has a --config of another kind.
        if FLAG in flags.FLAGS and hasattr(type(flags.FLAGS[FLAG]), "config_filename"):
            check_config(arguments[1:])
        try:
            rest = flags.FLAGS(list(arguments))
        except flags.Error as error:
            raise UserError(f"{_line(error)}; --help lists the flags.") from error
        except Exception as error:  # ml_collections raises it, and does not say where.
            _, fields = config_arguments(arguments[1:])
            raise UserError(
                f"What is given for {', '.join(f'config.{field}' for field in fields)} is not "
                f"understood ({_line(error)})."
            ) from error
        if rest[1:]:
            raise UserError(f"{rest[1]!r} is no flag: write --name=value; --help lists the flags.")
        return rest


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Turns bad input into one line and exit status 1; `--verbosity=1` shows where it arose.

    If anything else goes wrong in one of several processes, that process ends at once, too.
    """
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # One more would print a traceback.
        processes.fail("interrupted", status=128 + signal.SIGINT)
    except Exception as error:
        is_joined = jax.distributed.is_initialized()
        # If several processes wait for something in vain, one of them is lost.
        is_lost = is_joined and isinstance(error, TimeoutError)
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
