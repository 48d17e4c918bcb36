"""A weighted sum against its parts, from a config to the scores."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import common
from diffusionrl_jax.experiments import experiment
from diffusionrl_jax.rewards.scorers import without_gradient
from diffusionrl_jax.rewards.scoring import score
from diffusionrl_jax.rewards.weighted_sum import WeightedSum

PROMPTS = ["an apple and a cake", "an apple and a cake", "a cat and a dog", "a cat and a dog"]


@pytest.mark.slow
def test_sum_of_two_scorers():
    preference = common.make_scorer("image_reward", "asset:emoji/image_reward")
    size = common.make_scorer("jpeg_size", sign=1.0)
    scorer = common.make_weighted_sum(preference=(preference, 2), size=(size, -0.5))
    reward, params = experiment.load_scorer(scorer, group_size=2)
    images = np.random.default_rng(0).random((4, 32, 32, 3), dtype=np.float32)
    inputs = reward.prepare(PROMPTS)
    assert all(len(rows) == 4 for rows in inputs.values())
    scores = jax.jit(reward)(params, images, inputs)
    expected = np.zeros(4)
    for part, weight in ((preference, 2), (size, -0.5)):
        alone, its_params = experiment.load_scorer(part, group_size=2)
        expected += weight * jax.jit(alone)(its_params, images, alone.prepare(PROMPTS))
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_every_part_needs_a_weight():
    size, _ = experiment.load_scorer(common.make_scorer("jpeg_size"), 1)
    with pytest.raises(ValueError, match="needs one weight for each"):
        WeightedSum({"size": size}, {"sizes": 1.0})
    with pytest.raises(ValueError, match="needs one weight for each"):
        WeightedSum({}, {})


@dataclasses.dataclass(frozen=True)
class Redness:
    """A `Reward`: how red pictures are, times a scale."""

    scale: float = 1.0

    @classmethod
    def load(cls, path, **options):
        return cls(**options), {}

    def prepare(self, prompts):
        return {}

    def __call__(self, params, images, inputs):
        return self.scale * images[..., 0].mean((1, 2))


def test_each_reward_is_normalised_by_its_own_group():
    """GDPO by NumPy: a reward a thousand times as large as another one is no louder."""
    red = common.make_scorer("tests.rewards.test_weighted_sum:Redness", scale=1000.0)
    bright = common.make_scorer("tests.algorithms.toy:Brightness")
    scorer = common.make_weighted_sum(normalised=True, red=(red, 1.0), bright=(bright, 0.5))
    reward, params = experiment.load_scorer(scorer, group_size=3)
    images = np.random.default_rng(0).random((9, 4, 4, 3), dtype=np.float32)
    images[3:6] = images[3]  # A group without a difference.
    expected = np.zeros(9)
    for scores, weight in (
        (1000.0 * images[..., 0].mean((1, 2), dtype=np.float64), 1.0),
        (images.mean((1, 2, 3), dtype=np.float64), 0.5),
    ):
        groups = scores.reshape(3, 3)
        centred = groups - groups.mean(1, keepdims=True)
        expected += weight * (centred / (groups.std(1, keepdims=True) + 1e-4)).reshape(-1)
    scores = jax.jit(reward)(params, images, {})
    # Differences of about 0.01 between numbers near 0.5, of seven digits.
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    assert np.abs(expected).max() > 1 and not np.any(scores[3:6])
    # A picture that is not finite leaves its group without a mean.
    images[0] = np.nan
    found = np.isnan(score(reward, params, images, {}))
    np.testing.assert_array_equal(found, [True] * 3 + [False] * 6)


def test_a_normalised_sum_needs_groups_and_has_no_gradient():
    size = common.make_scorer("jpeg_size")
    plain = common.make_weighted_sum(a=(size, 1.0))
    assert "normalised" not in plain.options  # As configs of earlier runs have it.
    scorer = common.make_weighted_sum(normalised=True, a=(size, 1.0))
    with pytest.raises(ValueError, match="compares the images of a prompt: set the group_size"):
        experiment.load_scorer(scorer, group_size=1)
    assert without_gradient(scorer) == ["normalised weighted_sum"]
