"""Measures what a run takes: `python -m diffusionrl_jax.benchmark COMMAND --help`.

compile   tells whether a config fits a TPU that is not there, and how fast it could be
plan      shows what is chosen for a config on slices of TPUs, and the memory that it takes
table     shows what the published models ask of common slices: their mathematics, or compiled
train     times warm steps on the devices that are there
"""

import importlib
import sys

from diffusionrl_jax.command_line import programs
from diffusionrl_jax.mistakes import UserError, suggestion

COMMANDS = ("compile", "plan", "table", "train")


def main() -> None:
    """Passes the command line to the command's module, which has its own flags."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("", "--help", "-h"):
        sys.exit(__doc__)
    with programs.clear_errors():
        if name not in COMMANDS:
            raise UserError(f"benchmark has no command {name!r}: {suggestion(name, COMMANDS)}")
    module = importlib.import_module(f"diffusionrl_jax.costs.commands.{name}")
    programs.run(module.main, [f"benchmark {name}", *sys.argv[2:]])


if __name__ == "__main__":
    main()
