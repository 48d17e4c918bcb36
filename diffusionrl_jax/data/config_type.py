"""How a config is annotated."""

from typing import Any

import ml_collections

# An ml_collections.ConfigDict: its fields are its own and no type's, so that a type checker knows
# none of them. `experiments/checks.py` checks them.
Config = Any


def copied(config: Config) -> Config:
    """A config with fields of its own."""
    return ml_collections.ConfigDict(config.to_dict())
