"""What votes say, beside closed forms, SciPy and published numbers."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.stats

from diffusionrl_jax.reporting.study import findings, votes
from diffusionrl_jax.reporting.study.findings import (
    AGREEMENT,
    ALPHA,
    EVERYBODY,
    PEOPLE,
    PREFERENCE,
    CrossedBootstrap,
)
from diffusionrl_jax.reporting.study.questions import TIE, Question
from diffusionrl_jax.reporting.study.records import A, B
from tests.reporting.study.conftest import KINDS, PAIRS, choose, make_study, raters_of

WANTED = {0: A, 0.5: TIE, 1: B}


def cast(table):
    """Votes from a table [raters, pairs] of 0, 1/2, 1 and NaN; a is on the left in even pairs."""
    return [
        choose(rater, pair, Question(pair, *((B, A) if pair % 2 else (A, B))), WANTED[value])
        for rater, row in enumerate(table, start=1)
        for pair, value in enumerate(row)
        if np.isfinite(value)
    ]


def find(study, votes, needed=0.7):
    """By group, category, measure and judge."""
    found = findings.find(study, votes, findings.attend(raters_of(votes), votes, needed))
    return {(row.group, row.category, row.measure, row.judge): row for row in found}


def test_alpha_of_two_observers_as_published():
    # Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), A: alpha = 0.095.
    table = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
    assert findings.agreement(cast(table)) == pytest.approx(0.095, abs=5e-4)


def test_alpha_is_one_less_the_disagreement_over_that_by_chance():
    table = np.random.default_rng(0).choice([0, 0.5, 1, np.nan], (4, 30), p=[0.2, 0.2, 0.4, 0.2])
    units = [[v for v in column if np.isfinite(v)] for column in table.T]
    units = [unit for unit in units if len(unit) > 1]
    values = sum(units, [])
    observed = sum(
        sum((one - other) ** 2 for one, other in itertools.permutations(unit, 2)) / (len(unit) - 1)
        for unit in units
    ) / len(values)
    chance = sum((one - other) ** 2 for one, other in itertools.permutations(values, 2))
    chance /= len(values) * (len(values) - 1)
    assert findings.agreement(cast(table)) == pytest.approx(1 - observed / chance, rel=1e-9)


def test_alpha_of_those_who_agree_and_where_it_says_nothing():
    assert findings.agreement(cast([[0, 1, 0.5], [0, 1, 0.5]])) == pytest.approx(1)
    assert math.isnan(findings.agreement(cast([[0, 1, 0.5]]))), "one rater"
    assert math.isnan(findings.agreement(cast([[0, np.nan], [np.nan, 1]]))), "no pair in common"
    assert math.isnan(findings.agreement(cast([[1, 1], [1, 1]]))), "no variety"


def test_the_interval_of_one_rater_is_scipys_of_prompts():
    values = np.random.default_rng(0).choice([0, 0.5, 1], 150, p=[0.3, 0.1, 0.6])
    _, low, high = CrossedBootstrap(list(map(str, range(150))), [1] * 150).interval(values)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20000, rng=1
    ).confidence_interval
    # A bound of 2,000 resamples has a standard error of 0.0022: the mean's deviation, 0.037, times
    # sqrt(0.025 * 0.975 / 2000), over the normal density there, 0.0584. SciPy's own adds little.
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=4 * 0.0022)


def test_resampling_rows_and_columns_by_hand_gives_the_same_interval():
    generator = np.random.default_rng(0)
    table = generator.normal(size=(30, 1)) + generator.normal(size=(1, 6)) / 2
    table = table + generator.normal(size=(30, 6))
    table[generator.random(table.shape) < 0.2] = np.nan
    prompts, raters = (axis.ravel() for axis in np.indices(table.shape))
    found = CrossedBootstrap(prompts.astype(str), raters).interval(table.ravel())
    means = [
        np.nanmean(table[np.ix_(generator.integers(30, size=30), generator.integers(6, size=6))])
        for _ in range(4000)
    ]
    assert found[0] == pytest.approx(np.nanmean(table))
    # The bounds' own standard error is 0.06 of the deviation with 2,000 resamples, and 0.04 with
    # 4,000: 0.07 together.
    error = 4 * 0.07 * np.std(means)
    assert found[1:] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=error)


def test_raters_who_differ_widen_the_interval_as_their_variance_says():
    """Of rater effects alone the deviation is that of the raters' means over sqrt(raters)."""
    raters = 40
    effects = np.random.default_rng(1).normal(size=raters)
    table = np.tile(effects, (25, 1))
    prompts, numbers = (axis.ravel() for axis in np.indices(table.shape))
    value, low, high = CrossedBootstrap(prompts.astype(str), numbers).interval(table.ravel())
    expected = 1.96 * effects.std() / math.sqrt(raters)
    assert value == pytest.approx(effects.mean())
    assert (high - low) / 2 == pytest.approx(expected, rel=0.1)


def test_one_vote_has_no_interval():
    value, low, high = CrossedBootstrap(["a"], [1]).interval(np.array([1.0]))
    assert value == 1 and math.isnan(low) and math.isnan(high)
    _, low, high = CrossedBootstrap(["a", "a"], [1, 2]).interval(np.array([1.0, 0]))
    assert (low, high) == (0, 1)


def test_ties_are_half_and_sides_do_not_matter():
    study = make_study()
    found = find(study, cast([[1] * 6 + [0] * 2 + [0.5] * 4, [1] * 12]))
    row = found["overall", "", PREFERENCE, PEOPLE]
    assert (row.value, row.pairs, row.votes) == (pytest.approx((6 + 2 + 12) / 24), 12, 24)
    assert row.low < row.value < row.high
    alpha = found["overall", "", ALPHA, PEOPLE]
    assert alpha.value == findings.agreement(cast([[1] * 6 + [0] * 2 + [0.5] * 4, [1] * 12]))


def test_categories_are_counted_apart():
    # By the pair's number modulo 3: Animals always b, Crafts never, Produce not asked.
    table = [[(1, 0, np.nan)[pair % 3] for pair in range(PAIRS)]] * 2
    found = find(make_study(), cast(table))
    value = lambda kind: found["Category", kind, PREFERENCE, PEOPLE].value
    assert (value(KINDS[0]), value(KINDS[1])) == (1, 0)
    assert ("Category", KINDS[2], PREFERENCE, PEOPLE) not in found
    assert found["Category", KINDS[0], PREFERENCE, PEOPLE].votes == 8


def test_scorers_stand_beside_people():
    # "likes_b" prefers b in the first nine pairs; this rater in the first six, and ties two.
    found = find(make_study(), cast([[1] * 6 + [0] * 4 + [0.5] * 2]))
    assert found["overall", "", PREFERENCE, "likes_b"].value == 9 / 12
    assert found["overall", "", PREFERENCE, "likes_b"].votes == 0
    agreement = found["overall", "", AGREEMENT, "likes_b"]
    assert (agreement.value, agreement.votes) == (pytest.approx(7 / 10), 10)
    assert found["overall", "", PREFERENCE, "ties"].value == 0.5
    assert math.isnan(found["overall", "", AGREEMENT, "ties"].value)
    broken = dataclasses.replace(
        make_study(),
        pairs=tuple(
            dataclasses.replace(pair, scores={"likes_b": (math.nan, 1.0)} if n < 3 else pair.scores)
            for n, pair in enumerate(
                dataclasses.replace(pair, scores={"likes_b": pair.scores["likes_b"]})
                for pair in make_study().pairs
            )
        ),
    )
    found = find(broken, cast([[1] * 12]))
    assert found["overall", "", PREFERENCE, "likes_b"].value == 6 / 9
    assert found["overall", "", AGREEMENT, "likes_b"].votes == 9


def test_who_fails_the_checks_is_left_out(inattentive):
    attention = findings.attend(raters_of(inattentive), inattentive, 0.7)
    assert [(one.right, one.checks, one.counts) for one in attention] == [
        (2, 2, True),
        (0, 2, False),
        (0, 2, False),
        (0, 0, True),
    ]
    assert [one.answered for one in attention] == [PAIRS] * 4
    assert [one.left for one in attention] == [PAIRS // 2] * 4
    found = find(make_study(), inattentive)
    row = found["overall", "", PREFERENCE, PEOPLE]
    assert (row.value, row.votes) == (1, 2 * PAIRS)
    row = found["overall", "", PREFERENCE, EVERYBODY]
    assert (row.value, row.votes) == (0.75, 4 * PAIRS)
    everybody = find(make_study(), inattentive, needed=0.0)
    assert everybody["overall", "", PREFERENCE, PEOPLE].value == 0.75
    assert ("overall", "", PREFERENCE, EVERYBODY) not in everybody


def test_what_the_database_holds_is_what_is_counted(folder, study, raters):
    for rater in raters:
        for number, question in enumerate(votes.read_questions(folder, rater)):
            one = choose(
                rater.number, number, question, B if B in (question.left, question.right) else A
            )
            assert votes.vote(folder, rater, number, one.choice) == one.choice
    cast = [vote for rater in raters for vote in votes.read_votes(folder, rater)]
    found = find(study, cast)
    row = found["overall", "", PREFERENCE, PEOPLE]
    assert (row.value, row.votes) == (1, PAIRS * len(raters))
