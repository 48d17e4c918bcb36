import math

import numpy as np
import pytest

from diffusionrl_jax.evaluation import watch
from diffusionrl_jax.evaluation.records import Record

PROMPTS = [f"prompt {n // 2}" for n in range(80)]
REWARDED = {"size": ["small"], "judge": []}


def record(step=0, size=0.0, judge=0.0, distance=1.0, noise=0.0):
    random = np.random.default_rng(step)
    scores = {
        "size": size + noise * random.normal(size=80),
        "judge": judge + noise * random.normal(size=80),
    }
    distances = {prompt: distance for prompt in set(PROMPTS)}
    return Record(step, {"pairs": PROMPTS}, {"pairs": scores}, {"pairs": distances}, {})


def rows(*means, std=1.0):
    return [
        {"step": n, "small/reward_mean": mean, "small/reward_std": std}
        for n, mean in enumerate(means)
    ]


def fallen(now, probe=None):
    return fallen_between(record(), now, probe)


def fallen_between(base, now, probe=None):
    values = watch.signals(base, now, REWARDED, probe or {})
    return watch.falls(base, now, REWARDED, values)


def test_nothing_has_fallen_at_the_start():
    assert fallen(record(), {"noise_length": 1.0, "kl_to_base": 0.0}) == []


def test_each_fall_is_named():
    assert fallen(record(1, judge=-0.1, noise=0.01))[0].startswith("judge, never a reward, fell by")
    assert fallen(record(1, size=-0.1, noise=0.01)) == [], "a reward is no independent judge"
    assert fallen(record(1, judge=0.1, noise=0.01)) == []
    (phrase,) = fallen(record(1, distance=0.5))
    assert phrase == "the pictures of a prompt in pairs differ 50% as much as at first"
    assert fallen(record(1, distance=0.8)) == []
    (phrase,) = fallen(record(1, distance=0.0))
    assert phrase == "the pictures of a prompt in pairs differ 0% as much as at first"
    for length in (0.7, 1.3):
        (phrase,) = fallen(record(1), {"noise_length": length})
        assert phrase == f"the predicted noise is {length:.2f} times as long as the base model's"


def test_a_prompt_with_a_broken_picture_hides_no_other():
    base, now = record(), record(1, distance=0.5)
    for one, prompt in ((base, PROMPTS[0]), (now, PROMPTS[-1])):
        one.distances["pairs"][prompt] = math.nan
    assert watch.diversity_share(base, now, "pairs") == 0.5


def test_falls_that_are_too_small_are_none():
    """However clear they are: rounding, or a twentieth of what prompts differ by."""
    random = np.random.default_rng(0)
    assert not watch.has_fallen(random.normal(-1e-7, 1e-8, 64))
    base = record()
    base.scores["pairs"]["judge"] = np.repeat(random.normal(size=40), 2)
    deviation = base.scores["pairs"]["judge"].std()
    for share, expected in ((0.04, 0), (0.06, 1)):
        now = record(1)
        now.scores["pairs"]["judge"] = base.scores["pairs"]["judge"] - share * deviation
        assert len(watch.falls(base, now, REWARDED, {})) == expected


def test_lost_pictures_are_a_fall():
    """Those that the base model's drawing lost too are not."""
    base, now = record(), record(1)
    base.scores["pairs"]["judge"][:2] = now.scores["pairs"]["judge"][1:3] = np.nan
    assert fallen_between(base, now) == []
    now.scores["pairs"]["size"][:50] = np.inf
    assert watch.lost_scores(base, now) == {"pairs": 50}
    assert fallen_between(base, now) == ["50 more of the 80 pictures of pairs have no score"]


@pytest.mark.parametrize("length", [math.nan, math.inf, None])
def test_noise_that_is_not_finite_is_a_fall(length):
    """None is what metrics.jsonl has in place of either."""
    watched = {"watch/noise_length": length, "watch/diversity/pairs": None}
    assert watch.falls(record(), record(1), REWARDED, watched) == [
        "the predicted noise is not finite"
    ]
    if length is not None:
        assert fallen(record(1), {"noise_length": length}) == ["the predicted noise is not finite"]


def test_only_what_came_about_alike_is_compared():
    base, now = record(), record(1, judge=-1.0, size=1.0, distance=0.1)
    base.settings.update({"pairs": "a", "pairs/judge": "b"})
    now.settings.update({"pairs": "a", "pairs/judge": "b", "pairs/size": "c"})
    assert len(fallen_between(base, now)) == 2 and watch.not_compared(base, now) == []
    now.settings.update({"pairs": "other", "pairs/judge": "other"})
    assert fallen_between(base, now) == []
    assert watch.not_compared(base, now) == ["pairs", "pairs/judge"]
    assert watch.paired_changes(base, now, "size").size, "the base does not say"


def test_falls_by_chance_are_rare():
    """Of 1000 comparisons of the same with the same, 1 is expected; more than 6 in one of 10^4."""
    random = np.random.default_rng(0)
    changes = random.normal(size=(1000, 40))
    assert sum(map(watch.has_fallen, changes)) <= 6


def test_falls_of_few_prompts_are_not_judged():
    assert not watch.has_fallen(np.array([-1.0, -1.0]))
    assert watch.has_fallen(np.array([-1.0, -1.0, -1.0]))
    assert not watch.has_fallen(np.zeros(3))
    assert not watch.has_fallen(np.zeros(0))


def test_pictures_without_a_score_are_left_out():
    base, now = record(), record(1, judge=-1.0)
    now.scores["pairs"]["judge"][:2] = np.nan
    np.testing.assert_array_equal(watch.paired_changes(base, now, "judge"), np.full(39, -1.0))
    now.prompts["pairs"] = [*PROMPTS[1:], "another"]
    assert not watch.paired_changes(base, now, "judge").size


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], 1.0),
        ([1.0, 0.0, 0.0, 0.0], 0.0),
        ([2.0, 2.0, -5.0, -1.0], 0.5),  # log 2 / log 4
        ([-1.0, -1.0], math.nan),
        ([1.0], math.nan),
    ],
)
def test_the_entropy_of_shares(gains, expected):
    assert watch.gain_entropy(np.array(gains)) == pytest.approx(expected, nan_ok=True)


def test_signals_are_finite_and_named():
    found = watch.signals(record(), record(1, size=1.0, distance=0.5), REWARDED, {"kl_to_base": 2})
    assert found == {
        "watch/kl_to_base": 2,
        "watch/diversity/pairs": 0.5,
        "watch/gain_entropy/size": pytest.approx(1.0),
    }


def test_a_rise_is_clear_only_beyond_chance():
    flat, up = rows(*[0.0] * 8), rows(*np.linspace(0, 1, 8))
    assert watch.rise("small", up, 4, independent=100).is_clear
    assert not watch.rise("small", up, 4, independent=2).is_clear
    assert not watch.rise("small", flat, 4, independent=100).is_clear
    assert not watch.rise("small", up[::-1], 4, independent=100).is_clear
    assert watch.rise("small", up[:1], 4, independent=100) is None
    gaps = rows(0.0, None, math.nan, 2.0)
    found = watch.rise("small", gaps, 4, independent=100)
    assert (found.before, found.after) == (0.0, 2.0)


def test_rises_by_chance_are_rare():
    random = np.random.default_rng(1)
    clear = 0
    for _ in range(2000):
        means = random.normal(size=8) / math.sqrt(50)
        clear += watch.rise("small", rows(*means), 4, independent=50).is_clear
    assert clear <= 8  # 2 are expected; more than 8 in one of 4000.


def test_the_sentence_says_what_rises_and_what_falls():
    rises = [watch.Rise("small", -1.25, -0.5, True)]
    text = watch.warning(rises, ["judge, never a reward, fell by 0.1", "b"])
    assert text == (
        "The reward rises, of small (-1.25 to -0.5), while judge, never a reward, fell by 0.1; b: "
        "it may be fooled."
    )
    assert "the model breaks" in watch.warning([], ["b"])
    assert watch.warning(rises, []) == ""
