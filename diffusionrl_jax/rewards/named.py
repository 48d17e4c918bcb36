"""Finds what a config names as `package.module:attribute`."""

import importlib
from typing import Any


def resolve(name: str) -> Any:
    """The attribute of a module, imported from Python's path.

    Args:
      name: as in "my_rewards:redness" or "package.module:Redness".

    Raises:
      ValueError: it is not written so, or the module or its attribute can't be imported.
    """
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise ValueError(f"{name!r} is not of the form package.module:name.")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ValueError(
            f"{name!r} cannot be imported ({type(error).__name__}: {error}): mend the name, or put "
            "the folder that the module is in on PYTHONPATH."
        ) from error
