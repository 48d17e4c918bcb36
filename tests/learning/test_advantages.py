"""How rewards become advantages, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusionrl_jax.learning.advantages import batch_normalised, group_normalised


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
