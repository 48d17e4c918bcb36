"""Intervals and comparisons of scores, against closed forms."""

import math

import numpy as np
import pytest

from diffusionrl_jax.evaluation import statistics

PROMPTS = {"one": list("abcd"), "two": list("eeff")}


def measure(bootstrap, values):
    return bootstrap.interval(bootstrap.mean(values), values)


def test_interval_of_independent_images_is_the_normal_one():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    value, low, high = measure(statistics.Bootstrap([str(n) for n in range(400)]), values)
    error = 1.96 * values.std() / 400**0.5
    assert value == pytest.approx(values.mean())
    # A percentile of 2000 resamples is itself known to a few per cent.
    np.testing.assert_allclose([low, high], [value - error, value + error], atol=0.1 * error)


@pytest.mark.parametrize(("count", "expected", "usual"), [(6, 0.934, 0.855), (17, 0.944, 0.919)])
def test_intervals_of_few_prompts_hold_the_truth_as_often(count, expected, usual):
    """Of normal numbers, as 8000 other tries have it: within three standard errors of 2000.

    The other number is that of the percentiles of many prompts.
    """
    rng = np.random.default_rng(0)
    ways, hits = (statistics.percentiles(count), statistics.PERCENTILES), [0, 0]
    for _ in range(2000):
        values = rng.standard_normal(count)
        means = values[rng.integers(count, size=(1 + statistics.RESAMPLES, count))].mean(axis=1)
        for number, between in enumerate(ways):
            _, low, high = statistics.bounds(means, between)
            hits[number] += low <= 0 <= high
    assert hits[0] / 2000 == pytest.approx(expected, abs=0.016)
    assert hits[1] / 2000 == pytest.approx(usual, abs=0.023)
    many = np.array(statistics.percentiles(10**6))
    np.testing.assert_allclose(many, statistics.PERCENTILES, atol=1e-3)


def test_images_of_one_prompt_count_once():
    values = np.random.default_rng(0).normal(size=30)
    one = measure(statistics.Bootstrap([str(n) for n in range(30)]), values)
    prompts = [f"{n}" for n in range(30) for _ in range(10)]
    ten = measure(statistics.Bootstrap(prompts), values.repeat(10))
    np.testing.assert_allclose(ten[0], one[0])
    np.testing.assert_allclose(ten[2] - ten[1], one[2] - one[1], rtol=0.1)


def test_prompts_of_different_size_weigh_by_their_images():
    bootstrap = statistics.Bootstrap(["a", "a", "a", "b"])
    values = np.array([1.0, 1.0, 1.0, 0.0])
    means = bootstrap.mean(values)
    assert means[0] == 0.75
    assert set(np.round(means[1:], 6)) == {0.0, 0.75, 1.0}


def test_scores_that_are_not_finite_are_left_out():
    bootstrap = statistics.Bootstrap(list("abcd"))
    assert bootstrap.mean(np.array([1.0, np.nan, 3.0, np.inf]))[0] == 2.0
    assert math.isnan(bootstrap.mean(np.full(4, np.nan))[0])


def test_prompts_without_a_score_make_nothing_surer():
    few, many = statistics.Bootstrap(list("abcdef")), statistics.Bootstrap(list("abcdefghijklmn"))
    values = np.array([0.1, 0.9, 0.4, 0.6, 0.2, 0.7])
    padded = np.concatenate([values, np.full(8, np.nan)])
    _, low, high = measure(many, padded)
    _, least, most = measure(few, values)
    assert low < least and most < high
    assert many.scored(padded) == 6
    alone = np.where(np.arange(14) == 3, 0.5, np.nan)
    assert np.isnan(measure(many, alone)[1:]).all()


def test_one_prompt_has_no_interval():
    value, low, high = measure(statistics.Bootstrap(["a", "a"]), np.array([1.0, 2.0]))
    assert value == 1.5
    assert math.isnan(low)
    assert math.isnan(high)


def test_ties_are_half_a_win():
    scores, base = np.array([1.0, 2.0, 3.0, np.nan]), np.array([2.0, 2.0, 2.0, 2.0])
    np.testing.assert_array_equal(statistics.wins(scores, base), [0, 0.5, 1, np.nan])


def compared():
    base = {"one": {"s": np.array([0.0, 0.1, 0.2, 0.1])}, "two": {"s": np.zeros(4)}}
    ours = {"one": {"s": np.array([0.5, 0.6, 0.7, 0.0])}, "two": {"s": np.zeros(4)}}
    real = {"one": {"s": np.full(4, 1.1)}}
    return statistics.compare({"base": base, "ours": ours}, PROMPTS, ("s",), real)


def test_comparison_has_every_measure():
    rows = {(row.model, row.set, row.measure): row for row in compared()}
    assert rows["ours", "one", "mean"].value == pytest.approx(0.45)
    assert rows["base", "one", "mean"].value == pytest.approx(0.1)
    assert rows[statistics.REAL, "one", "mean"].value == pytest.approx(1.1)
    assert rows["ours", "one", "win_rate"].value == 0.75
    assert rows["ours", "two", "win_rate"].value == 0.5
    assert rows["ours", statistics.OVERALL, "win_rate"].value == 0.625
    assert rows["ours", statistics.OVERALL, "win_rate"].images == 8
    assert rows["ours", "one", "distance_closed"].value == pytest.approx(0.35)
    assert ("ours", "two", "distance_closed") not in rows, "there are no real pictures"
    assert not [row for row in rows if row[0] == "base" and row[2] != "mean"]
    for row in rows.values():
        assert not row.low > row.value
        assert not row.high < row.value


def test_no_share_is_given_of_a_distance_that_is_not_there():
    scores = {"one": {"s": np.arange(4.0)}}
    rows = statistics.compare({"base": scores, "ours": scores}, PROMPTS, (), scores)
    assert {row.measure for row in rows} == {"mean"}
