"""The losses and advantages against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusionrl_jax.algorithms import losses


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
