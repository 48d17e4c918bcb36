"""Imports what a config names as `package.module:attribute`."""

import importlib
from typing import Any

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.mistakes.code import named_errors


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
