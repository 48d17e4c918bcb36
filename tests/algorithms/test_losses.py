"""The losses and advantages against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusionrl_jax.algorithms import losses
from diffusionrl_jax.learning.advantages import batch_normalised, group_normalised


def test_clipped_surrogate_closed_form():
    log_ratio = np.log([1.0, 1.1, 0.9, 1.3, 1.3, 0.7, 0.7]).astype(np.float32)
    advantages = np.array([2.0, 2.0, -2.0, 2.0, -2.0, 2.0, -2.0], np.float32)
    result = losses.clipped_surrogate(log_ratio, advantages, 0.2)
    np.testing.assert_allclose(result.loss, [-2, -2.2, 1.8, -2.4, 2.6, -1.4, 1.6], rtol=1e-6)
    np.testing.assert_array_equal(result.clipped, [0, 0, 0, 1, 1, 1, 1])


def test_surrogate_gradient_has_the_sign_of_the_advantage_until_it_is_clipped():
    advantages = jnp.asarray([2.0, -2.0, 2.0, -2.0, 2.0, -2.0])
    ratio = jnp.asarray([1.0, 1.0, 1.3, 1.3, 0.7, 0.7])
    gradient = jax.grad(
        lambda log_ratio: losses.clipped_surrogate(log_ratio, advantages, 0.2).loss.sum()
    )(jnp.log(ratio))
    # d loss / d log-prob is -w A; 0 where w has left the range in the direction that A rewards.
    np.testing.assert_allclose(gradient, [-2, 2, 0, 2.6, -1.4, 0], rtol=1e-6)


@pytest.mark.parametrize("passes", [1, 2])
def test_pretraining_loss_is_the_mean_squared_error(passes):
    """Of both texts, that expected: a quarter of the time the empty prompt's."""
    rng = np.random.default_rng(0)
    output, target = rng.standard_normal((3, passes, 4, 2, 2)), rng.standard_normal((3, 4, 2, 2))
    errors = ((output - target[:, None]) ** 2).reshape(3, passes, -1).mean(2)
    expected = errors[:, 0] if passes == 1 else 0.75 * errors[:, 0] + 0.25 * errors[:, 1]
    result = losses.pretraining(jnp.asarray(output), jnp.asarray(target), 0.25)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


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


def test_masked_surrogate_closed_form():
    """Where the divergence is too large and the ratio has moved with the advantage: no gradient."""
    ratio = np.array([1.3, 1.3, 1.3, 1.3, 0.7, 0.7, 0.7, 1.0], np.float32)
    advantages = np.array([2.0, 2.0, -2.0, 0.0, -2.0, -2.0, 2.0, 2.0], np.float32)
    divergence = np.array([2.0, 0.5, 2.0, 2.0, 2.0, 0.5, 2.0, 2.0], np.float32)
    masked = np.array([1, 0, 0, 0, 1, 0, 0, 0])
    surrogate = lambda log_ratio: losses.masked_surrogate(log_ratio, advantages, divergence, 1.0)
    result = surrogate(np.log(ratio))
    np.testing.assert_allclose(result.loss, -ratio * advantages, rtol=1e-6)
    np.testing.assert_array_equal(result.clipped, masked)
    gradient = jax.grad(lambda log_ratio: surrogate(log_ratio).loss.sum())(jnp.log(ratio))
    np.testing.assert_allclose(gradient, -(1 - masked) * ratio * advantages, rtol=1e-6)
