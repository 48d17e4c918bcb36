"""What a checkpoint holds beside the state: its metrics, and digests of its arrays.

It is one JSON file in the folder of the step, which Orbax completes together with the state.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from etils import epath
from orbax.checkpoint import checkpoint_managers

from diffusionrl_jax.mistakes import UserError

RECORD = "record"
OLD_METRICS = "metrics.json"  # Earlier versions kept all steps' metrics there.


class DamagedError(UserError):
    """Raised where a part of a checkpoint is not what was saved."""


class Score(NamedTuple):
    """The score that a step was saved with.

    Attributes:
      value: the score; NaN where the step was not evaluated.
      by: names the settings that it is by, with whose scores alone it can be compared; None for a
        checkpoint of an earlier version, which does not say.
    """

    value: float
    by: str | None


def seal(content: Any) -> dict[str, str]:
    """Returns JSON with a digest of itself, to be read by `read_record`."""
    text = json.dumps(content)
    return {"content": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def read_record(directory: epath.Path, step: int) -> dict[str, Any] | None:
    """Reads what was sealed and saved with a step's state.

    Args:
      directory: the folder of all steps.
      step: the step to read.

    Returns:
      The content; None for a checkpoint of an earlier version, which has none.

    Raises:
      DamagedError: the file is missing, unreadable, or not what was saved.
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


def read_score(directory: epath.Path, step: int, metric: str | None) -> Score:
    """Reads the metric that a step was saved with.

    Args:
      directory, step: as in `read_record`.
      metric: the metric's name. Earlier versions kept only one metric, in a file beside the steps.

    Raises:
      DamagedError: the metric cannot be read.
    """
    record = read_record(directory, step)
    try:
        if record is not None:
            return Score(float(record["metrics"][metric]), record.get("scored_by"))
        return Score(float(json.loads((directory / OLD_METRICS).read_text())[str(step)]), None)
    except (OSError, ValueError, TypeError, KeyError):
        where = OLD_METRICS if record is None else f"{step}/{RECORD}"
        raise DamagedError(f"{directory / where} has no readable score of step {step}") from None


class KeepLastAndBest(checkpoint_managers.PreservationPolicy):
    """Decides which checkpoints are kept.

    The metrics are not left to Orbax: one damaged folder makes all of them unreadable there.

    Args:
      last: how many of the newest checkpoints are kept.
      best: how many of those with the largest score are kept besides, of each settings that scores
        are by.
      score: a function from a step to its score. NaN is the worst score. A step whose score is
        None, which means that it cannot be read, is kept.
    """

    def __init__(self, last: int, best: int, score: Callable[[int], Score | None]):
        self.last, self.best, self._score = last, best, score

    def should_preserve(self, checkpoints: Sequence, *, context) -> Sequence[bool]:
        """Returns for each checkpoint whether it is kept; Orbax calls it."""
        del context
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        kept = set(steps[-self.last :])
        if self.best:
            scores = {step: self._score(step) for step in steps}
            kept |= {step for step, score in scores.items() if score is None}
            known = {step: score for step, score in scores.items() if score is not None}
            values = {step: score.value for step, score in known.items()}
            rank = lambda step: (-math.inf if math.isnan(values[step]) else values[step], step)
            for by in {score.by for score in known.values()}:
                alike = [step for step, score in known.items() if score.by == by]
                kept |= set(sorted(alike, key=rank)[-self.best :])
        return [checkpoint.step in kept for checkpoint in checkpoints]
