"""Compares models on the same prompts and noise, with confidence intervals.

The intervals are percentiles of a bootstrap that resamples prompts, not images: the images of one
prompt resemble each other, and parity is a number of a whole group.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)
REAL = "real pictures"
OVERALL = "overall"

# The scores of one model: set -> scorer -> [n].
Scores = Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One number of the comparison.

    Attributes:
      model: the model's name.
      set: the set of prompts; `OVERALL` means all of them together.
      measure: "mean", "win_rate" against the base model, or "distance_closed" from the base model
        to real pictures (0 is the base, 1 is real pictures).
      scorer: the scorer that it is measured by.
      value: the number.
      low, high: the bounds of its 95% interval; NaN for a single prompt.
      images: how many images had a finite score.
    """

    model: str
    set: str
    measure: str
    scorer: str
    value: float
    low: float
    high: float
    images: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A number that two models' scores of the same images give together.

    Attributes:
      model, against: the two models' names.
      set, scorer: the set of prompts, and the scorer.
      value: the number.
      low, high: the bounds of its 95% interval, by a bootstrap over prompts; NaN for a single one.
    """

    model: str
    against: str
    set: str
    scorer: str
    value: float
    low: float
    high: float


def resample(count: int, generator: np.random.Generator) -> np.ndarray:
    """Returns how often each of so many clusters is in the sample and in each resample of it.

    Args:
      count: how many clusters there are.
      generator: it draws the resamples.

    Returns:
      float64 [1 + RESAMPLES, count]. The first row, of ones, is the sample itself.
    """
    drawn = generator.integers(count, size=(RESAMPLES, count))
    weights = np.stack([np.bincount(row, minlength=count) for row in drawn])
    return np.concatenate([np.ones((1, count)), weights])


def percentiles(clusters: int) -> tuple[float, float]:
    """Returns which percentiles of a mean's resamples bound its 95% interval.

    Those of many clusters, 2.5 and 97.5, are too near each other for few: resamples vary less than
    samples, by the root of (n - 1) / n, and Student's t has wider tails than the normal. These are
    of the expanded percentile interval (Hesterberg, 2015, The American Statistician 69, 371).

    Args:
      clusters: n, at least 2.
    """
    quantile = scipy.stats.t.ppf(PERCENTILES[0] / 100, clusters - 1)
    low = 100 * scipy.stats.norm.cdf(quantile * (clusters / (clusters - 1)) ** 0.5)
    return low, 100 - low


def bounds(
    statistics: np.ndarray, between: tuple[float, float] = PERCENTILES
) -> tuple[float, float, float]:
    """Returns the value of a statistic, and the bounds of its interval.

    Args:
      statistics: [1 + RESAMPLES], the statistic of the sample and of each resample.
      between: the percentiles of the resamples that bound the interval.

    Returns:
      The value and the bounds, which are NaN where no resample has a finite value.
    """
    resampled = statistics[1:][np.isfinite(statistics[1:])]
    low, high = np.percentile(resampled, between) if resampled.size else (np.nan, np.nan)
    return float(statistics[0]), float(low), float(high)


class Bootstrap:
    """Resamples clusters of images. All that one bootstrap measures has the same resamples.

    Args:
      clusters: the cluster of each image, which is its prompt.
      seed: the seed of the resamples.
    """

    def __init__(self, clusters: Sequence[str], seed: int = 0):
        names, self._cluster = np.unique(np.asarray(clusters), return_inverse=True)
        self.count = len(names)
        self._weights = resample(self.count, np.random.default_rng(seed))

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Returns the mean of the finite values in the sample and in resamples, [1 + RESAMPLES]."""
        finite = np.isfinite(values)
        sums = np.bincount(self._cluster, np.where(finite, values, 0), self.count)
        counts = np.bincount(self._cluster, finite, self.count)
        with np.errstate(invalid="ignore"):
            return (self._weights @ sums) / (self._weights @ counts)

    def scored(self, values: np.ndarray) -> int:
        """Returns how many clusters have an image with a finite value."""
        return len(np.unique(self._cluster[np.isfinite(values)]))

    def interval(self, statistics: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
        """Returns the value and the bounds of a statistic.

        Args:
          statistics: [1 + RESAMPLES], the statistic of the sample and of each resample, computed
            from the results of `mean`.
          values: what it is of, [images]. A cluster without a finite one tells nothing.

        Returns:
          The value, and the bounds of its interval. The bounds are NaN where one cluster only tells
          anything, or no resample has a finite value.
        """
        if (count := self.scored(values)) < 2:
            return float(statistics[0]), np.nan, np.nan
        return bounds(statistics, percentiles(count))


def wins(scores: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Returns 1 where a score is above the base's, 1/2 for ties, NaN where either is not finite."""
    both = np.isfinite(scores) & np.isfinite(base)
    return np.where(both, (scores > base) + 0.5 * (scores == base), np.nan)


def compare(
    scores: Mapping[str, Scores],
    prompts: Mapping[str, Sequence[str]],
    head_to_head: Sequence[str] = (),
    real: Scores | None = None,
) -> list[Measurement]:
    """Computes all measurements of a comparison.

    Args:
      scores: model -> its scores; the first model is the base.
      prompts: set -> the prompt of each image.
      head_to_head: the scorers by which each model's images are set against the base's.
      real: the scores of real pictures, for the sets that can be drawn.

    Returns:
      The measurements by model, in the order of `scores`; those of real pictures come last.
    """
    real = real or {}
    base_name, base = next(iter(scores.items()))
    bootstraps = {name: Bootstrap(texts) for name, texts in prompts.items()}
    rows = []

    def add(bootstrap: Bootstrap, model, name, measure, scorer, statistics, values):
        images = int(np.isfinite(values).sum())
        interval = bootstrap.interval(statistics, values)
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
                distance, apart = bootstrap.mean(values) - start, values - base[name][scorer]
                # A share of no distance means nothing: the base must be clearly below real
                # pictures.
                if not bootstrap.interval(distance, apart)[1] > 0:
                    continue
                closed = (bootstrap.mean(sets[name][scorer]) - start) / distance
                all_three = apart + sets[name][scorer]
                add(bootstrap, model, name, "distance_closed", scorer, closed, all_three)
    return rows
