"""Tells the judges that a run is rewarded by from those that it is not."""

from collections.abc import Iterator, Mapping
from typing import Any

from diffusionrl_jax.rewards.scorers import WEIGHTED_SUM


def _parts(scorer: Mapping[str, Any]) -> Iterator[str]:
    """Yields what a scorer, or each part of a sum, looks with: its model's path, or its name."""
    if scorer["reward"] == WEIGHTED_SUM:
        for part in scorer["options"]["scorers"].values():
            yield from _parts(part)
    else:
        yield scorer["path"].rstrip("/") or scorer["reward"]


def rewarded_by(tasks: Mapping[str, Any], scorers: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the tasks that are rewarded by what an evaluation's scorer judges by.

    Options make no difference: with another sign, or another credit, it is the same judge. Nor does
    the reward's name, where two look with one model.

    Args:
      tasks: `config.tasks`, a config or a dictionary.
      scorers: `config.evaluation.scorers`, likewise.

    Returns:
      For each scorer, the names of these tasks. A judge that is never a reward has none.
    """
    of_tasks = {name: set(_parts(task["scorer"])) for name, task in tasks.items()}
    return {
        name: [task for task, parts in of_tasks.items() if parts & set(_parts(scorer))]
        for name, scorer in scorers.items()
    }
