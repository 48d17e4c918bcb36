"""The reward's own gradient against finite differences of decoding and scoring."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import emoji_policy_gradient
from diffusionrl_jax.algorithms.reward_gradient import RewardGradient
from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.experiments import experiment as experiments
from diffusionrl_jax.experiments import planning
from diffusionrl_jax.models.folders.published import NOISE_SCHEDULE


@pytest.fixture
def preference():
    """The emoji world's preference, few at a time."""

    def make(**changes):
        config = emoji_policy_gradient.get_config("preference")
        config.algorithm.name = "reward_gradient"
        changes = {"batch_size": 16, "pretraining.weight": 0.0} | changes
        config.update_from_flattened_dict(changes)
        return planning.resolve(config)[0]

    return make


@pytest.mark.slow
def test_the_reward_is_differentiated_by_the_latents(preference):
    """Also a microbatch at a time: each picture's gradient is its own."""
    made = experiments.build(preference(**{"microbatch.differentiate": 2}))
    experience, inputs = made.algorithm.experience, made.batch(0).reward_inputs[0]
    rng = np.random.default_rng(0)
    shape = (16, *experience.model.latent_shape)
    latents, direction = rng.standard_normal((2, *shape)).astype(np.float32)
    direction /= np.sqrt(np.square(direction).sum((1, 2, 3), keepdims=True))
    of_latents = experience.scoring.reward_gradient
    gradient = jax.jit(lambda latents: of_latents(0, made.frozen, latents, inputs))
    scores, slopes = gradient(latents)
    along = np.asarray((slopes * direction).sum((1, 2, 3)))
    step = 0.05
    higher, lower = (np.asarray(gradient(latents + sign * step * direction)[0]) for sign in (1, -1))
    np.testing.assert_allclose(
        along, (higher - lower) / (2 * step), atol=0.02 * np.abs(along).max()
    )
    assert np.isfinite(scores).all() and np.abs(along).min() > 0


def test_the_loss_has_the_gradient_of_the_reward_of_the_guess():
    """By the chain rule through diffusers' formula of the guess, of each prediction."""
    rng = np.random.default_rng(1)
    output, latents, direction = rng.standard_normal((3, 4, 4, 8, 8)).astype(np.float32)
    times, reward = np.array([5, 300, 600, 999]), np.arange(4.0, dtype=np.float32)
    alpha = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[times]
    for prediction, factor in (
        ("epsilon", -np.sqrt((1 - alpha) / alpha)),
        ("v_prediction", -np.sqrt(1 - alpha)),
        ("flow", -times / 1000),
    ):
        config = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
        if prediction != "flow":
            config = NOISE_SCHEDULE | {"prediction_type": prediction}
        process = make_process(config, 10)
        made = RewardGradient(process, 0, 1.0, (1.0,), 1, (0.2, 0.6))
        shown_at = times / np.float32(1000) if prediction == "flow" else times
        own = {"times": shown_at, "direction": direction, "reward_of_guess": reward}
        shown = types.SimpleNamespace(own=own, latents=latents)
        loss = lambda output, made=made, shown=shown: made(output[:, None], shown, True)[0]
        np.testing.assert_allclose(loss(output), -reward, atol=1e-5)
        found = jax.grad(lambda output, loss=loss: loss(output).sum())(jnp.asarray(output))
        expected = -factor.reshape(-1, 1, 1, 1) * direction
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)


def test_refuses_times_in_disorder(preference):
    with pytest.raises(ValueError, match="0 <= least_time < most_time <= 1"):
        preference(**{"algorithm.reward_gradient.least_time": 0.7})


def test_a_reward_without_a_gradient_is_refused(make_config):
    """Before anything is opened."""
    with pytest.raises(ValueError, match="task small's jpeg_size has none"):
        planning.resolve(make_config(**{"algorithm.name": "reward_gradient"}))
