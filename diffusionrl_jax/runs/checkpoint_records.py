"""What lies beside the state in a checkpoint: its metrics, and digests of its arrays.

It is one JSON file in the folder of the step, which Orbax completes together with the state.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath
from orbax.checkpoint import checkpoint_managers

from diffusionrl_jax.mistakes import UserError

RECORD = "record"
OLD_METRICS = "metrics.json"  # Of all steps: there earlier versions kept them.


class DamagedError(UserError):
    """A part of a checkpoint is not what was saved."""


def seal(content: Any) -> dict[str, str]:
    """JSON with a digest of itself, to be read by `read_record`."""
    text = json.dumps(content)
    return {"content": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def read_record(directory: epath.Path, step: int) -> dict[str, Any] | None:
    """What was sealed and saved with a step's state.

    Args:
      directory: of all steps.
      step: which.

    Returns:
      The content; None for a checkpoint of an earlier version, which has none.

    Raises:
      DamagedError: it is not what was saved.
    """
    file = directory / str(step) / RECORD / "metadata"
    try:
        sealed = json.loads(file.read_text())
        content = json.loads(sealed["content"])
        if sealed != seal(content):
            raise DamagedError(f"{file} is not what was saved, by its digest")
        return content
    except FileNotFoundError:
        if file.parent.exists():
            raise DamagedError(f"{file} is missing") from None
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{file} is unreadable ({type(error).__name__})") from None


def read_score(directory: epath.Path, step: int, metric: str | None) -> float:
    """The metric that a step was saved with, NaN where it was not evaluated.

    Args:
      directory, step: as of `read_record`.
      metric: its name; earlier versions kept one alone, beside the steps.

    Raises:
      DamagedError: it cannot be known.
    """
    record = read_record(directory, step)
    try:
        if record is not None:
            return float(record["metrics"][metric])
        return float(json.loads((directory / OLD_METRICS).read_text())[str(step)])
    except (OSError, ValueError, TypeError, KeyError):
        where = OLD_METRICS if record is None else f"{step}/{RECORD}"
        raise DamagedError(f"{directory / where} has no readable score of step {step}") from None


class KeepLastAndBest(checkpoint_managers.PreservationPolicy):
    """Which checkpoints stay. The metrics are not left to Orbax: of one damaged folder it makes all
    of them unreadable.

    Args:
      last: how many of the newest.
      best: how many of those with the largest score besides.
      score: of a step; NaN is the worst, and one of None, which can't be read, stays.
    """

    def __init__(self, last: int, best: int, score: Callable[[int], float | None]):
        self.last, self.best, self._score = last, best, score

    def should_preserve(self, checkpoints: Sequence, *, context) -> Sequence[bool]:
        del context
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        kept = set(steps[-self.last :])
        if self.best:
            scores = {step: self._score(step) for step in steps}
            kept |= {step for step, score in scores.items() if score is None}
            known = {step: score for step, score in scores.items() if score is not None}
            rank = lambda step: (-math.inf if math.isnan(known[step]) else known[step], step)
            kept |= set(sorted(known, key=rank)[-self.best :])
        return [checkpoint.step in kept for checkpoint in checkpoints]
