"""How a config is annotated."""

from typing import Any

# An ml_collections.ConfigDict: its fields are its own and no type's, so that a type checker knows
# none of them. `experiments/checks.py` checks them.
Config = Any
