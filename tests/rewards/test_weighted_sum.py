"""A weighted sum against its parts, from a config to the scores."""

import jax
import numpy as np
import pytest

from configs import common
from diffusionrl_jax.experiments import experiment
from diffusionrl_jax.rewards.weighted_sum import WeightedSum

PROMPTS = ["an apple and a cake", "an apple and a cake", "a cat and a dog", "a cat and a dog"]


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
