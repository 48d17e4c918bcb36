"""Calls what programs are made of in this process, although their flags have the same names."""

import contextlib
import importlib
import re
import sys
from unittest import mock

from absl import flags

# What one types, and its commands: what has flags and is imported by nothing else.
PROGRAM = re.compile(r"diffusionrl_jax\.(\w+|.+\.commands\.\w+|emoji_world\.train_\w+)")
BENCHMARK = re.compile(r"benchmarks\.\w+")


@contextlib.contextmanager
def program(name, *arguments):
    """A program's module, newly imported, with its flags as `arguments` give them.

    The flags of all other programs and of benchmarks are put aside, and are there again afterwards.

    Args:
      name: as after `diffusionrl_jax.`.
      arguments: as on the command line.
    """
    values = vars(flags.FLAGS)
    before, others = dict(values), flags.FlagValues()
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if not (PROGRAM.fullmatch(module) or BENCHMARK.fullmatch(module)):
            for flag in defined:
                others[flag.name] = flag
                others.register_flag_by_module(module, flag)
    aside = _forget()
    values.clear()
    values.update(vars(others))
    line = [name, *arguments]
    try:
        with mock.patch.object(sys, "argv", line):  # Where fields of a config are looked for.
            module = importlib.import_module(f"diffusionrl_jax.{name}")
            assert flags.FLAGS(line) == [name]
        yield module
    finally:
        _forget()
        values.clear()
        values.update(before)
        for module, content in aside.items():
            sys.modules[module] = content
            parent, _, leaf = module.rpartition(".")
            setattr(sys.modules[parent], leaf, content)


def _forget():
    """Has Python import anew the programs that it has imported, and returns them by their names.

    Flags of a program that is no longer imported, as another test may leave it, stay as they are.
    """
    defined = flags.FLAGS.flags_by_module_dict()
    programs = [name for name in defined if PROGRAM.fullmatch(name) and name in sys.modules]
    found = {name: sys.modules.pop(name) for name in programs}
    for name in found:
        parent, _, leaf = name.rpartition(".")
        delattr(sys.modules[parent], leaf)
    return found
