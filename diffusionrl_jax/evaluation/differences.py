"""Compares any two models of an evaluation, by their scores of the same prompts and noise."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from diffusionrl_jax.evaluation.statistics import Bootstrap, Comparison, Scores

CSV = "differences.csv"


@dataclasses.dataclass(frozen=True)
class Difference(Comparison):
    """How much higher one model scores than another: the mean of `model` less `against`.

    Attributes:
      p: the probability of a difference as large, either way, if there is none: by Student's t
        test, with the bootstrap's standard error, and the number of prompts less 1.
      p_holm: the same after Holm's correction for all the differences that were looked at.
      images: how many images had a finite score by both.
    """

    p: float
    p_holm: float
    images: int


def holm(p: np.ndarray) -> np.ndarray:
    """Corrects p values for their number (Holm 1979, the step-down Bonferroni).

    Whatever they depend on each other, the probability of any corrected value below 0.05 is at most
    0.05 if nothing that was tested is there.

    Args:
      p: float [n]. Those that are NaN were not tested, stay so, and do not count.
    """
    p = np.asarray(p, np.float64)
    corrected = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return corrected


def p_value(bootstrap: Bootstrap, means: np.ndarray, values: np.ndarray) -> float:
    """Returns the p value of a mean that is not 0; see `Difference`.

    Args:
      bootstrap: the bootstrap.
      means: [1 + RESAMPLES], from its `mean`.
      values: what they are the means of, [images].

    Returns:
      The two-sided p value; 1 where all differences are 0. It is NaN where there is one prompt, or
      where nothing varies, so that nothing can be told.
    """
    value, resampled = means[0], means[1:][np.isfinite(means[1:])]
    count = bootstrap.scored(values)
    if count < 2 or not np.isfinite(value) or not resampled.size:
        return math.nan
    # Resamples vary less than samples.
    error = resampled.std() * (count / (count - 1)) ** 0.5
    # Identical differences sum up to means that differ in their last bits.
    if error <= 1e-12 * abs(value):
        return 1.0 if value == 0 else math.nan
    return float(2 * scipy.stats.t.sf(abs(value) / error, count - 1))


def differences(
    scores: Mapping[str, Scores], prompts: Mapping[str, Sequence[str]]
) -> list[Difference]:
    """Compares each model with each one before it, on every set and by every scorer.

    Args:
      scores: model -> its scores, as in `statistics.compare`.
      prompts: set -> the prompt of each image.
    """
    found = []
    for name, texts in prompts.items():
        bootstrap = Bootstrap(texts)
        for against, model in itertools.combinations(scores, 2):
            for scorer, values in scores[model][name].items():
                with np.errstate(invalid="ignore"):
                    apart = values.astype(np.float64) - scores[against][name][scorer]
                means = bootstrap.mean(apart)
                interval, p = bootstrap.interval(means, apart), p_value(bootstrap, means, apart)
                images = int(np.isfinite(apart).sum())
                found.append(
                    Difference(model, against, name, scorer, *interval, p, math.nan, images)
                )
    corrected = holm(np.array([one.p for one in found]))
    return [
        dataclasses.replace(one, p_holm=float(p)) for one, p in zip(found, corrected, strict=True)
    ]
