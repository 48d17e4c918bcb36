"""Each command of the program has its module and its line of the help."""

import importlib.util
import re

from diffusionrl_jax import benchmark


def test_every_command_has_a_module_and_a_line_of_the_help():
    for name in benchmark.COMMANDS:
        assert importlib.util.find_spec(f"diffusionrl_jax.costs.commands.{name}"), name
    assert (
        tuple(re.findall(r"^(\w+) {2,}\w", benchmark.__doc__, re.MULTILINE)) == benchmark.COMMANDS
    )
