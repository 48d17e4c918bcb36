"""Paired differences and Holm's correction, against SciPy, published examples and simulation."""

import math

import numpy as np
import pytest
import scipy.stats

from diffusionrl_jax.evaluation.differences import differences, holm
from diffusionrl_jax.evaluation.statistics import Bootstrap


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        # The example of Wikipedia's "Holm-Bonferroni method": H1 and H4 are rejected at 0.05.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        # 5, 4, 3, 2 and 1 times them, of which none falls below one before it.
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.5, 0.9, 0.8], [1, 1, 1]),
        ([0.04], [0.04]),
        ([0.01, math.nan, 0.03], [0.02, math.nan, 0.03]),
        ([], []),
    ],
)
def test_holm_by_hand(p, expected):
    np.testing.assert_allclose(holm(np.array(p)), expected, rtol=1e-12)


def test_holm_keeps_the_rate_of_any_error():
    """Of 2000 families of 20 true nulls 5% have a p below 0.05, within 3 standard errors."""
    generator = np.random.default_rng(0)
    families = [holm(generator.random(20)) for _ in range(2000)]
    share = np.mean([family.min() < 0.05 for family in families])
    assert share == pytest.approx(1 - (1 - 0.05 / 20) ** 20, abs=3 * (0.05 * 0.95 / 2000) ** 0.5)


def scored(shift, prompts=60, images=1):
    generator = np.random.default_rng(1)
    apart = generator.normal(shift, 0.1, prompts).repeat(images)
    easy = generator.normal(size=prompts * images)
    return easy, easy + apart, [f"{n}" for n in range(prompts) for _ in range(images)]


@pytest.mark.parametrize("shift", [0.0, 0.03])
def test_one_image_of_a_prompt_is_a_paired_t_test(shift):
    base, ours, prompts = scored(shift)
    (found,) = differences({"base": {"s": {"r": base}}, "ours": {"s": {"r": ours}}}, {"s": prompts})
    expected = scipy.stats.ttest_rel(ours, base)
    assert found.value == pytest.approx((ours - base).mean())
    # A standard error by 2000 resamples is known to 1.6%.
    error = (found.high - found.low) / 2 / scipy.stats.t.isf(0.025, 59)
    assert error == pytest.approx((ours - base).std(ddof=1) / 60**0.5, rel=0.07)
    t = scipy.stats.t.isf(found.p / 2, 59)
    assert t == pytest.approx(abs(expected.statistic), rel=0.04)


def test_what_prompts_differ_in_is_left_out():
    base, ours, prompts = scored(0.1)
    (found,) = differences({"base": {"s": {"r": base}}, "ours": {"s": {"r": ours}}}, {"s": prompts})
    assert found.p < 1e-6 < scipy.stats.ttest_ind(ours, base).pvalue


def test_images_of_one_prompt_count_once():
    results = []
    for images in (1, 8):
        base, ours, prompts = scored(0.03, images=images)
        scores = {"base": {"s": {"r": base}}, "ours": {"s": {"r": ours}}}
        results += differences(scores, {"s": prompts})
    one, eight = results
    assert eight.value == pytest.approx(one.value)
    assert eight.p == pytest.approx(one.p, rel=0.2)


def test_each_pair_is_compared_and_corrected_together():
    base, ours, prompts = scored(0.03)
    scores = {name: {"s": {"r": by}} for name, by in zip("abc", (base, ours, base), strict=True)}
    found = differences(scores, {"s": prompts})
    assert [(one.model, one.against) for one in found] == [("b", "a"), ("c", "a"), ("c", "b")]
    assert found[1].p == found[1].p_holm == 1
    assert found[0].value == pytest.approx(-found[2].value)
    np.testing.assert_allclose([one.p_holm for one in found], holm([one.p for one in found]))


def test_what_can_not_be_told():
    one = {"a": {"s": {"r": np.array([0.0, 1.0])}}, "b": {"s": {"r": np.array([1.0, 1.0])}}}
    (single,) = differences(one, {"s": ["x", "x"]})
    assert single.value == 0.5 and math.isnan(single.p) and math.isnan(single.p_holm)
    constant = {"a": {"s": {"r": np.zeros(3)}}, "b": {"s": {"r": np.full(3, 0.1)}}}
    (same,) = differences(constant, {"s": list("xyz")})
    assert math.isnan(same.p)
    part = {"a": {"s": {"r": np.array([np.nan, 1.0, 2.0])}}, "b": {"s": {"r": np.ones(3)}}}
    (some,) = differences(part, {"s": list("xyz")})
    assert some.images == 2 and some.value == -0.5
    assert Bootstrap(["x", "x"]).count == 1
