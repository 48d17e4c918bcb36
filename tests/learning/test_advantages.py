"""Advantages within groups against NumPy and SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffusionrl_jax.experiments.algorithm import make_algorithm
from diffusionrl_jax.learning import advantages
from tests.algorithms import toy

NAN = np.nan


def test_binary_rewards_by_the_mean_alone():
    rewards = np.float32([1, 0, 0, 0, 1, 1, 1, 1, 1, 1, NAN, 0])
    found = advantages.group_centred(jnp.asarray(rewards), 4, 10.0)
    expected = [0.75, -0.25, -0.25, -0.25, 0, 0, 0, 0, 1 / 3, 1 / 3, 0, -2 / 3]
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    np.testing.assert_allclose(found.reward_mean, np.nanmean(rewards), rtol=1e-6)
    assert found.valid.sum() == 11


def test_win_rates_are_those_of_pairs():
    """Of ranks, by SciPy: an image beats all that rank below it, and half of its equals."""
    rng = np.random.default_rng(0)
    rewards = rng.integers(0, 4, 60).astype(np.float32) * 1e-6  # Tiny gaps count as any others.
    found = np.asarray(advantages.win_rates(jnp.asarray(rewards), 6)).reshape(10, 6)
    ranks = scipy.stats.rankdata(rewards.reshape(10, 6), axis=1)
    np.testing.assert_allclose(found, (ranks - 1) / 5, atol=1e-6)
    found = advantages.win_rates(jnp.asarray(np.float32([3, NAN, 1, NAN, NAN, 2])), 3)
    np.testing.assert_array_equal(found, [1, NAN, 0, NAN, NAN, 0.5])


def test_win_rates_are_normalised_over_the_batch():
    rewards = np.float32([0.1, 0.2, 0.3, 5.0, 5.0, 5.0, 1e-5, 0, 100.0])
    found = advantages.win_normalised(jnp.asarray(rewards), 3, 10.0)
    rates = np.array([0, 0.5, 1, 0.5, 0.5, 0.5, 0.5, 0, 1])
    np.testing.assert_allclose(found.values, (rates - 0.5) / rates.std(), atol=1e-5)
    np.testing.assert_allclose(found.reward_mean, rewards.mean(), rtol=1e-5)


@pytest.mark.parametrize("name", advantages.BY_GROUP)
def test_a_task_names_its_rule(name):
    made = toy.make("nft", **{"tasks.task0.normalisation": name})
    rewards = jnp.asarray(np.random.default_rng(0).standard_normal((1, 16)), jnp.float32)
    found, _ = made.algorithm.rules(rewards, made.batch, {})
    alone = advantages.OF_GROUPS[name](rewards[0], 4, 10.0)
    np.testing.assert_array_equal(found.values[0], alone.values)


def test_rules_of_groups_need_groups():
    made = toy.make("nft")
    made.config.tasks.task0.update(normalisation="win_rate", group_size=1)
    experience = made.algorithm.experience
    with pytest.raises(ValueError, match="task0 is normalised by win rate: set its group_size"):
        make_algorithm(made.config, experience.model, experience.mesh, experience.rewards)
