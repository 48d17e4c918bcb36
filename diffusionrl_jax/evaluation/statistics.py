"""Compares models on the same images' prompts and noise, with confidence intervals.

Intervals are percentiles of a bootstrap that resamples prompts, not images: the images of one
prompt resemble one another, and parity is a number of the group.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)
REAL = "real pictures"
OVERALL = "overall"

# set -> scorer -> [n], the scores of one model.
Scores = Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One number of the comparison.

    Attributes:
      model: its name.
      set: of prompts; `OVERALL` for all of them together.
      measure: "mean", "win_rate" against the base model, or "distance_closed" from the base model
        to real pictures (0 is the base, 1 is real).
      scorer: by which it was measured.
      value, low, high: with the bounds of its 95% interval; NaN bounds for a single prompt.
      images: how many had a finite score.
    """

    model: str
    set: str
    measure: str
    scorer: str
    value: float
    low: float
    high: float
    images: int


class Bootstrap:
    """Resamples clusters of images; the same resamples for everything that it measures.

    Args:
      clusters: the cluster of each image, its prompt.
      seed: of the resamples.
    """

    def __init__(self, clusters: Sequence[str], seed: int = 0):
        names, self._cluster = np.unique(np.asarray(clusters), return_inverse=True)
        self.count = len(names)
        drawn = np.random.default_rng(seed).integers(self.count, size=(RESAMPLES, self.count))
        # How often each cluster is in each resample; the first row is the sample itself.
        weights = np.stack([np.bincount(row, minlength=self.count) for row in drawn])
        self._weights = np.concatenate([np.ones((1, self.count)), weights])

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The mean of the finite values in the sample and in each resample: [1 + RESAMPLES]."""
        finite = np.isfinite(values)
        sums = np.bincount(self._cluster, np.where(finite, values, 0), self.count)
        counts = np.bincount(self._cluster, finite, self.count)
        with np.errstate(invalid="ignore"):
            return (self._weights @ sums) / (self._weights @ counts)

    def interval(self, statistics: np.ndarray) -> tuple[float, float, float]:
        """Value and bounds of a statistic that was computed from `mean`s."""
        resampled = statistics[1:][np.isfinite(statistics[1:])]
        if self.count < 2 or not resampled.size:
            return float(statistics[0]), np.nan, np.nan
        low, high = np.percentile(resampled, PERCENTILES)
        return float(statistics[0]), float(low), float(high)


def wins(scores: np.ndarray, base: np.ndarray) -> np.ndarray:
    """1 where the score is above the base's, 1/2 for a tie, NaN where either is not finite."""
    both = np.isfinite(scores) & np.isfinite(base)
    return np.where(both, (scores > base) + 0.5 * (scores == base), np.nan)


def compare(
    scores: Mapping[str, Scores],
    prompts: Mapping[str, Sequence[str]],
    head_to_head: Sequence[str] = (),
    real: Scores | None = None,
) -> list[Measurement]:
    """All measurements.

    Args:
      scores: model -> its scores; the first model is the base.
      prompts: set -> the prompt of each image.
      head_to_head: scorers to set each model against the base by.
      real: scores of real pictures, for the sets that can be drawn.

    Returns:
      Measurements, by model, in the order of `scores`, and last of real pictures.
    """
    real = real or {}
    base_name, base = next(iter(scores.items()))
    bootstraps = {name: Bootstrap(texts) for name, texts in prompts.items()}
    rows = []

    def add(bootstrap: Bootstrap, model, name, measure, scorer, statistics, values):
        images = int(np.isfinite(values).sum())
        interval = bootstrap.interval(statistics)
        rows.append(Measurement(model, name, measure, scorer, *interval, images))

    for model, sets in [*scores.items(), (REAL, real)]:
        for name, scorers in sets.items():
            bootstrap = bootstraps[name]
            for scorer, values in scorers.items():
                add(bootstrap, model, name, "mean", scorer, bootstrap.mean(values), values)
        if model in (base_name, REAL):
            continue
        for scorer in head_to_head:
            outcomes = {
                name: wins(sets[name][scorer], base[name][scorer])
                for name in sets
                if scorer in sets[name]
            }
            for name, outcome in outcomes.items():
                bootstrap = bootstraps[name]
                add(bootstrap, model, name, "win_rate", scorer, bootstrap.mean(outcome), outcome)
            if outcomes:
                together = np.concatenate(list(outcomes.values()))
                clusters = [f"{name}/{text}" for name in outcomes for text in prompts[name]]
                bootstrap = Bootstrap(clusters)
                mean = bootstrap.mean(together)
                add(bootstrap, model, OVERALL, "win_rate", scorer, mean, together)
        for name, scorers in real.items():
            bootstrap = bootstraps[name]
            for scorer, values in scorers.items():
                start = bootstrap.mean(base[name][scorer])
                distance = bootstrap.mean(values) - start
                # A share of nothing means nothing: the base must be clearly below real pictures.
                if not bootstrap.interval(distance)[1] > 0:
                    continue
                closed = (bootstrap.mean(sets[name][scorer]) - start) / distance
                add(bootstrap, model, name, "distance_closed", scorer, closed, values)
    return rows
