"""Win rates of any two models, counted by hand, with the intervals of SciPy."""

import math

import numpy as np
import pytest
import scipy.stats

from diffusionrl_jax.evaluation.head_to_head import win_rates
from diffusionrl_jax.evaluation.statistics import REAL, compare


def models():
    generator = np.random.default_rng(0)
    draw = lambda shift: np.round(generator.normal(shift, 1.0, 60), 1)
    return {name: {"s": {"r": draw(shift)}} for name, shift in (("base", 0), ("a", 0.5), ("b", 1))}


def test_every_pair_meets_once():
    scores = models()
    found = win_rates(scores, {"s": [str(n) for n in range(60)]}, ["r"])
    assert [(one.model, one.against) for one in found] == [("a", "base"), ("b", "base"), ("b", "a")]
    for one in found:
        apart = scores[one.model]["s"]["r"] - scores[one.against]["s"]["r"]
        above, below = (apart > 0).sum(), (apart < 0).sum()
        assert one.value == pytest.approx((above + (60 - above - below) / 2) / 60)
    # Wilson's interval is moved by 0.015 towards a half; wins come in steps of 1/60; a percentile
    # of 2000 resamples is known to 0.006 here.
    wilson = scipy.stats.binomtest(round(60 * found[1].value), 60).proportion_ci(method="wilson")
    assert (found[1].low, found[1].high) == pytest.approx((wilson.low, wilson.high), abs=0.04)


def test_against_the_base_it_is_the_results_own():
    scores, prompts = models(), {"s": [str(n // 2) for n in range(60)]}
    known = [row for row in compare(scores, prompts, ["r"]) if row.measure == "win_rate"]
    of_set = {row.model: row for row in known if row.set == "s" and row.model != REAL}
    for one in win_rates(scores, prompts, ["r"]):
        if one.against == "base":
            row = of_set[one.model]
            assert (one.value, one.low, one.high) == (row.value, row.low, row.high)


def test_ties_and_scores_that_are_missing():
    nan = math.nan
    one = {"s": {"r": np.array([1.0, 2.0, nan, 4.0]), "other": np.zeros(4)}, "t": {"q": np.ones(1)}}
    two = {"s": {"r": np.array([1.0, 3.0, 3.0, nan]), "other": np.zeros(4)}, "t": {"q": np.ones(1)}}
    (found,) = win_rates({"one": one, "two": two}, {"s": ["x"] * 4, "t": ["x"]}, ["r"])
    assert (found.set, found.value, found.images) == ("s", 0.75, 2)
    assert math.isnan(found.low) and math.isnan(found.high)
