"""Advantages within groups against NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffusionrl_jax.learning import advantages
from diffusionrl_jax.learning.advantages import batch_normalised, group_normalised
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


def test_advantages_closed_form():
    rewards = np.random.default_rng(0).normal(3, 2, 100).astype(np.float32)
    result = batch_normalised(jnp.asarray(rewards), 10.0)
    np.testing.assert_allclose(result.values, (rewards - rewards.mean()) / rewards.std(), atol=1e-5)
    np.testing.assert_allclose(result.reward_mean, rewards.mean(), rtol=1e-5)
    np.testing.assert_allclose(result.reward_std, rewards.std(), rtol=1e-5)
    assert result.valid.all()


def test_advantages_are_clipped():
    rewards = np.zeros(200, np.float32)
    rewards[0] = 1
    values = batch_normalised(jnp.asarray(rewards), 10.0).values
    assert values[0] == 10
    np.testing.assert_allclose(values[1:], -np.mean(rewards) / np.std(rewards), rtol=1e-5)


def test_rewards_that_are_not_finite_are_left_out():
    rewards = np.array([1, np.nan, 2, np.inf, 4, -np.inf], np.float32)
    result = batch_normalised(jnp.asarray(rewards), 10.0)
    finite = rewards[[0, 2, 4]]
    np.testing.assert_array_equal(result.valid, [1, 0, 1, 0, 1, 0])
    np.testing.assert_allclose(
        result.values[::2], (finite - finite.mean()) / finite.std(), rtol=1e-5
    )
    np.testing.assert_array_equal(result.values[1::2], 0)
    np.testing.assert_allclose(result.reward_mean, finite.mean(), rtol=1e-6)


@pytest.mark.parametrize("rewards", [[0.1] * 12, [-37.123] * 7, [np.nan] * 4, [5.0, np.nan]])
def test_nothing_to_prefer_gives_no_advantage(rewards):
    result = batch_normalised(jnp.asarray(rewards), 10.0)
    np.testing.assert_array_equal(result.values, 0)
    assert np.isfinite(result.reward_mean)


def test_group_normalised_takes_out_each_groups_mean():
    rewards = np.random.default_rng(0).normal(size=12).astype(np.float32) + np.repeat([0, 9, 99], 4)
    result = group_normalised(jnp.asarray(rewards, jnp.float32), 4, 10.0)
    centred = (rewards.reshape(3, 4) - rewards.reshape(3, 4).mean(1, keepdims=True)).ravel()
    np.testing.assert_allclose(result.values, centred / centred.std(), atol=2e-4)
    np.testing.assert_allclose(result.reward_std, rewards.std(), rtol=1e-5)


@pytest.mark.parametrize("group_size", [1, 3, 10, 16])
def test_groups_without_a_difference_give_no_advantage(group_size):
    """Their means are rounded, and no two alike."""
    rewards = np.repeat(np.random.default_rng(0).normal(size=6).astype(np.float32), group_size)
    result = jax.jit(group_normalised, static_argnums=1)(rewards, group_size, 10.0)
    np.testing.assert_array_equal(result.values, 0)
    rewards[0] = np.nan
    result = group_normalised(jnp.asarray(rewards), group_size, 10.0)
    np.testing.assert_array_equal(result.values, 0)
    np.testing.assert_array_equal(result.valid, np.isfinite(rewards))


def test_a_group_without_a_difference_counts_beside_one_with():
    rewards = np.array([0.1] * 10 + [1.0] * 5 + [2.0] * 5, np.float32)
    values = group_normalised(jnp.asarray(rewards), 10, 10.0).values
    np.testing.assert_array_equal(values[:10], 0)
    np.testing.assert_allclose(values[10:], np.repeat([-1, 1], 5) * 2**0.5, rtol=1e-5)


def test_group_normalised_leaves_invalid_rewards_out():
    rewards = jnp.asarray([1.0, 3.0, jnp.nan, 5.0, 5.0, 5.0, jnp.nan, jnp.nan, jnp.nan])
    result = group_normalised(rewards, 3, 10.0)
    np.testing.assert_allclose(result.values[:2], [-(2.5**0.5), 2.5**0.5], rtol=1e-5)
    np.testing.assert_array_equal(result.values[2:], 0)
    np.testing.assert_array_equal(result.valid, jnp.isfinite(rewards))
