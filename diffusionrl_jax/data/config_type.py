"""The type by which a config is annotated."""

from typing import Any

import ml_collections

# It is an ml_collections.ConfigDict, whose fields are its own and no type's, so that a type checker
# knows none of them. `experiments/checks.py` checks them.
Config = Any


def copied(config: Config) -> Config:
    """Returns a copy of a config, with fields of its own."""
    return ml_collections.ConfigDict(config.to_dict())
