"""Reads the config file that a command line names before absl does, for errors of one line."""

import itertools
import pathlib
import runpy
from collections.abc import Sequence

import ml_collections

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.mistakes import UserError, suggestion
from diffusionrl_jax.mistakes.code import named_errors

FLAG = "config"


def check_config(arguments: Sequence[str]) -> None:
    """Refuses a config file that gives no config, and overrides of fields that it does not have.

    Args:
      arguments: the program's arguments. Without a --config nothing is refused.

    Raises:
      UserError: the file or a field is wrong; it names the file, with what is wrong and where, or
        the field.
    """
    named, overridden = config_arguments(arguments)
    if named is None:
        return
    config = read_config(named)
    for field in overridden:
        _check_field(config, field)


def read_config(text: str, flag: str = f"--{FLAG}") -> Config:
    """Returns the config that a file's `get_config` returns.

    Args:
      text: the file's path, and after a colon what the function is called with.
      flag: the flag that names the file, for messages.

    Raises:
      UserError: there is no such file, or it does not give a config.
    """
    path, colon, variant = text.partition(":")
    shown = f"{flag}={text}"
    if not pathlib.Path(path).is_file():
        raise UserError(f"{shown}: there is no file {path!r}: name one such as configs/emoji.py.")
    try:
        with named_errors(f"{shown} cannot be read", "mend the file"):
            found = runpy.run_path(path)
            if "get_config" not in found:
                raise UserError("it has no function get_config, which a config's file needs.")
            config = found["get_config"](*([variant] if colon else []))
            if not isinstance(config, ml_collections.ConfigDict):
                kind = type(config).__name__
                raise UserError(f"its get_config gives a {kind}, and not a ConfigDict.")
    except UserError as error:
        if error.__cause__ is not None:  # The message names the file already.
            raise
        raise UserError(f"{shown}: {error}") from None
    return config


def config_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns what the last --config is, or None, and the fields that are overridden."""
    named, fields = None, []
    arguments = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    for argument, following in itertools.pairwise([*arguments, None]):
        if argument is None or not argument.startswith("-"):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        if name == FLAG:
            named = value if equals else following
        elif name.removeprefix("no").startswith(f"{FLAG}."):
            fields.append(name.removeprefix("no").removeprefix(f"{FLAG}."))
    return named, fields


def _check_field(config: Config, field: str) -> None:
    """Refuses a field that the config does not have."""
    group, full = config, FLAG
    for name in field.partition("[")[0].split("."):
        if not isinstance(group, ml_collections.ConfigDict):
            raise UserError(f"There is no field {FLAG}.{field}: {full} is no group of fields.")
        if name not in group:
            raise UserError(f"There is no field {full}.{name}: {suggestion(name, group)}")
        group, full = group[name], f"{full}.{name}"
