"""Finds what a config names as `package.module:attribute`."""

import importlib
from typing import Any

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.mistakes.code import named_errors


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
