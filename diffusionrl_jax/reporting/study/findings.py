"""What a study's votes say: the preference, the agreement, and reward models beside them."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import krippendorff
import numpy as np

from diffusionrl_jax.evaluation.statistics import OVERALL, Bootstrap, bounds, resample, wins
from diffusionrl_jax.reporting.study.questions import LEFT, TIE
from diffusionrl_jax.reporting.study.records import A, B, Study
from diffusionrl_jax.reporting.study.votes import Rater, Vote

PEOPLE, EVERYBODY = "people", "people, nobody left out"
PREFERENCE, ALPHA, AGREEMENT = "preference", "alpha", "agreement"
# What a vote counts, as a score of b.
VALUES = {A: 0.0, TIE: 0.5, B: 1.0}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One number of a study.

    Attributes:
      group: `OVERALL`, or a column of the prompts' file or suite.
      category: the value in that column; "" for `OVERALL`.
      measure: `PREFERENCE` for b over a, with ties half; `ALPHA`, Krippendorff's, 1 where raters
        agree and 0 where they might have guessed; `AGREEMENT`, the share of votes that a reward
        model agrees with, where neither ties.
      judge: `PEOPLE`, `EVERYBODY`, or the name of a scorer.
      value: the number.
      low, high: the bounds of its 95% interval; NaN where there is none.
      pairs, votes: how many it is of. A scorer's preference is of pairs alone.
    """

    group: str
    category: str
    measure: str
    judge: str
    value: float
    low: float
    high: float
    pairs: int
    votes: int


@dataclasses.dataclass(frozen=True)
class Attention:
    """How a rater has answered.

    Attributes:
      rater: the rater.
      answered: how many pairs are answered.
      ties, left: how many of these answers are a tie, or the left picture.
      checks, right: how many attention checks are answered, and how many of them rightly.
      counts: whether the rater's votes count.
    """

    rater: Rater
    answered: int
    ties: int
    left: int
    checks: int
    right: int
    counts: bool


class CrossedBootstrap:
    """Resamples prompts and raters at once and apart: the pigeonhole bootstrap.

    A vote weighs the product of how often its prompt and its rater are drawn (Owen, "The pigeonhole
    bootstrap", 2007, https://arxiv.org/abs/0712.1111). The votes of one prompt, or of one rater,
    are not taken for independent of each other. Its 95% intervals are rather too wide, and held the
    truth in 95 to 100% of simulated studies; in 90% where only five raters differ among themselves
    as much as the prompts do.

    Args:
      prompts, raters: of each vote.
      seed: the seed of the resamples.
    """

    def __init__(self, prompts: Sequence[str], raters: Sequence[int], seed: int = 0):
        generator = np.random.default_rng(seed)
        names, self._prompt = np.unique(np.asarray(prompts), return_inverse=True)
        numbers, self._rater = np.unique(np.asarray(raters), return_inverse=True)
        self._shape = len(names), len(numbers)
        self._weights = [resample(count, generator) for count in self._shape]

    def _sums(self, values: np.ndarray) -> np.ndarray:
        table = np.zeros(self._shape)
        np.add.at(table, (self._prompt, self._rater), values)
        prompts, raters = self._weights
        return ((prompts @ table) * raters).sum(1)

    def interval(self, values: np.ndarray) -> tuple[float, float, float]:
        """Returns the mean of the finite values, and the bounds of its interval.

        Args:
          values: [votes]. NaN counts for nothing.

        Returns:
          The mean and the bounds, which are NaN if there is only one prompt and one rater.
        """
        finite = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            means = self._sums(np.where(finite, values, 0)) / self._sums(finite.astype(float))
        if max(self._shape) < 2:
            return float(means[0]), math.nan, math.nan
        return bounds(means)


def agreement(votes: Sequence[Vote]) -> float:
    """Returns Krippendorff's alpha of votes, where a tie lies halfway between a and b.

    The difference of two votes is that of `VALUES`, squared (the interval metric).

    Returns:
      Alpha; NaN if no pair has two raters, and where all votes are alike, which leaves nothing to
      agree on.
    """
    pairs, unit = np.unique([vote.pair for vote in votes], return_inverse=True)
    raters, rater = np.unique([vote.rater for vote in votes], return_inverse=True)
    table = np.full((len(raters), len(pairs)), np.nan)
    table[rater, unit] = preferences(votes)
    paired = table[:, np.isfinite(table).sum(0) > 1]
    if len(np.unique(paired[np.isfinite(paired)])) < 2:
        return math.nan
    return float(krippendorff.alpha(paired, level_of_measurement="interval"))


def preferences(votes: Sequence[Vote]) -> np.ndarray:
    """Returns what each vote counts as a score of b, 0, 1/2 or 1: float64 [votes]."""
    return np.array([VALUES[vote.question.chosen(vote.choice)] for vote in votes])


def attend(raters: Sequence[Rater], votes: Sequence[Vote], needed: float) -> list[Attention]:
    """Returns how each rater has answered, and whether the votes count.

    Args:
      raters: all raters.
      votes: all votes, with those of attention checks.
      needed: the share of the answered checks that must be right. Who has answered none counts.
    """
    found = []
    for rater in raters:
        own = [vote for vote in votes if vote.rater == rater.number]
        checks = [vote for vote in own if vote.question.is_check]
        answers = [vote for vote in own if not vote.question.is_check]
        right = sum(vote.question.chosen(vote.choice) in (A, B) for vote in checks)
        found.append(
            Attention(
                rater,
                answered=len(answers),
                ties=sum(vote.choice == TIE for vote in answers),
                left=sum(vote.choice == LEFT for vote in answers),
                checks=len(checks),
                right=right,
                counts=not checks or right / len(checks) >= needed,
            )
        )
    return found


def find(study: Study, votes: Sequence[Vote], attention: Sequence[Attention]) -> list[Finding]:
    """Computes all numbers of a study.

    Args:
      study: the study.
      votes: all votes; those of attention checks are left out.
      attention: says whose votes count.

    Returns:
      The numbers of all pairs, and then of each category of each column, the largest first.
      Categories of which nobody has seen a pair are left out.
    """
    counting = {one.rater.number for one in attention if one.counts}
    everything = [vote for vote in votes if not vote.question.is_check]
    counted = [vote for vote in everything if vote.rater in counting]
    found = []
    for group, category, chosen in _groups(study, counted):
        found += _find_group(study, group, category, chosen)
    if len(counted) < len(everything):
        value = _bootstrap(study, everything).interval(preferences(everything))
        found.append(_finding(OVERALL, "", PREFERENCE, EVERYBODY, value, everything))
    return found


def _groups(study: Study, votes: Sequence[Vote]) -> Iterator[tuple[str, str, list[Vote]]]:
    """Yields group, category and votes of all that has votes."""
    if votes:
        yield OVERALL, "", list(votes)
    for column in study.pairs[0].groups:
        inside: dict[str, list[Vote]] = {}
        for vote in votes:
            inside.setdefault(study.pairs[vote.pair].groups[column], []).append(vote)
        for category, chosen in sorted(inside.items(), key=lambda item: (-len(item[1]), item[0])):
            yield column, category, chosen


def _finding(
    group: str,
    category: str,
    measure: str,
    judge: str,
    value: tuple[float, float, float],
    votes: Sequence[Vote],
    are_counted: bool = True,
) -> Finding:
    pairs = len({vote.pair for vote in votes})
    return Finding(group, category, measure, judge, *value, pairs, are_counted * len(votes))


def _bootstrap(study: Study, votes: Sequence[Vote]) -> CrossedBootstrap:
    prompts = [study.pairs[vote.pair].prompt for vote in votes]
    return CrossedBootstrap(prompts, [vote.rater for vote in votes])


def _find_group(
    study: Study, group: str, category: str, votes: Sequence[Vote]
) -> Iterator[Finding]:
    """Yields the numbers of one group, which has votes."""
    bootstrap, preferred = _bootstrap(study, votes), preferences(votes)
    add: Callable[..., Finding] = lambda *found: _finding(group, category, *found)
    yield add(PREFERENCE, PEOPLE, bootstrap.interval(preferred), votes)
    yield add(ALPHA, PEOPLE, (agreement(votes), math.nan, math.nan), votes)
    seen = sorted({vote.pair for vote in votes})
    pairs = Bootstrap([study.pairs[pair].prompt for pair in seen])
    for scorer in study.pairs[0].scores:
        outcomes = scored(study, scorer)
        of_pairs = np.array([outcomes[pair] for pair in seen])
        value = pairs.interval(pairs.mean(of_pairs), of_pairs)
        yield add(PREFERENCE, scorer, value, votes, False)
        judged = np.array([outcomes[vote.pair] for vote in votes])
        decided = (judged != 0.5) & (preferred != 0.5) & np.isfinite(judged)
        same = np.where(decided, judged == preferred, np.nan)
        agreeing = [vote for vote, is_decided in zip(votes, decided, strict=True) if is_decided]
        yield add(AGREEMENT, scorer, bootstrap.interval(same), agreeing)


def scored(study: Study, scorer: str) -> Mapping[int, float]:
    """Returns what a scorer prefers in each pair: 1 for b, 0 for a, 1/2 for ties, or NaN."""
    scores = np.array([pair.scores[scorer] for pair in study.pairs], float).reshape(-1, 2)
    return dict(enumerate(wins(scores[:, 1], scores[:, 0]).tolist()))
