"""The policy gradient's ratios, their bias and divergence against SciPy and NumPy."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffusionrl_jax.diffusion.process import sensitivity
from tests.algorithms import toy

FIELDS = "algorithm.policy_gradient"
BOTH = {f"{FIELDS}.remove_ratio_bias": True, f"{FIELDS}.most_divergence": 1e-5}


def objective(**changes):
    fields = {f"{FIELDS}.{name}": value for name, value in changes.items()}
    return toy.method(toy.make("policy_gradient", **fields).config)


@pytest.fixture(scope="module")
def numbers():
    """Steps that an old policy took, and what a new one says of them, in float64."""
    rng = np.random.default_rng(0)
    made = objective()
    output, latents, noise = rng.standard_normal((3, 8, 2, 2, 3))
    old = output + 0.1 * rng.standard_normal(output.shape)
    index = np.array([0, 1, 2, 3] * 2, np.int32)
    of = lambda output: jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64),
        made.step(*map(np.float32, (output[:, None], latents)), index),
    )
    before, now = of(old), of(output)
    taken = before.mean + before.std * noise
    mean = lambda array: array.mean((1, 2, 3))
    return types.SimpleNamespace(
        output=np.float32(output), latents=np.float32(latents), index=index,
        taken=taken, old_mean=before.mean,
        old_log_prob=mean(scipy.stats.norm.logpdf(taken, before.mean, before.std)),
        log_ratio=mean(
            scipy.stats.norm.logpdf(taken, now.mean, now.std)
            - scipy.stats.norm.logpdf(taken, before.mean, before.std)
        ),
        along=mean(noise * (now.mean - before.mean) / now.std),
        divergence=mean((now.mean - before.mean) ** 2 / (2 * now.std**2)),
        advantages=np.array([1.0, -1.0, 0.5, -2.0, -1.0, 2.0, -0.5, 0.0]),
    )  # fmt: skip


def loss(made, numbers):
    own = {
        "target": numbers.taken,
        "step_index": numbers.index,
        "old_log_prob": numbers.old_log_prob,
        "old_mean": numbers.old_mean,
        "advantages": numbers.advantages,
    }
    own = {name: np.float32(array) for name, array in own.items()}
    own["step_index"] = numbers.index
    shown = types.SimpleNamespace(own=own, latents=numbers.latents, group=1)
    return made(jnp.asarray(numbers.output)[:, None], shown, True)


@pytest.mark.parametrize("balanced", [False, True])
def test_without_its_bias_a_ratio_is_the_noise_along_the_movement(numbers, balanced):
    """GRPO-Guard's <z dmu / S>; the divergences here are up to 0.1, and the ratios near 1."""
    made = objective(remove_ratio_bias=True, clip_range=0.9, balance_timesteps=balanced)
    value, metrics = loss(made, numbers)
    along = numbers.along
    if balanced:
        along = along / np.asarray(sensitivity(made.process, made.eta))[numbers.index]
    np.testing.assert_allclose(value, -np.exp(along) * numbers.advantages, atol=1e-4)
    np.testing.assert_allclose(metrics["kl_to_old"], numbers.divergence, rtol=1e-3)
    # The ratio that is logged is the true one, and the bias is not small.
    np.testing.assert_allclose(metrics["ratio"], np.exp(numbers.log_ratio), rtol=1e-4)
    np.testing.assert_allclose(
        numbers.log_ratio, numbers.along - numbers.divergence, rtol=1e-6, atol=1e-9
    )
    assert numbers.divergence.max() > 1e-3


def test_a_divergence_masks_what_clipping_would_clip(numbers):
    middle = float(np.median(numbers.divergence))
    made = objective(most_divergence=middle)
    value, metrics = loss(made, numbers)
    np.testing.assert_allclose(value, -np.exp(numbers.log_ratio) * numbers.advantages, atol=1e-4)
    moved = np.where(numbers.advantages > 0, numbers.log_ratio > 0, numbers.log_ratio < 0)
    masked = moved & (numbers.divergence > middle)
    np.testing.assert_array_equal(metrics["clip_fraction"], masked)
    assert 0 < masked.sum() < 4


def test_every_ratio_is_1_before_the_first_update(hasty):
    """At each trained step; afterwards the divergence is that of the means of old and new."""
    changes = {f"{FIELDS}.timesteps_per_iteration": 4, "tasks.task0.shared_noise": True}
    made = toy.make("policy_gradient", **BOTH | changes)
    phases, params, frozen = made.algorithm.phases(), made.state.params, made.frozen
    samples = jax.jit(phases.sample)(params, frozen, made.batch.input_ids, 0)
    rewards = jnp.asarray(np.random.default_rng(0).standard_normal((1, 16)), jnp.float32)
    arguments = params, frozen, samples.trained_on(), rewards, made.batch, 0, {}
    prepared = jax.jit(phases.prepare)(*arguments)
    text = jax.tree.map(lambda leaf: leaf[0], prepared.text)
    of_params = lambda params: jax.lax.map(
        lambda example: made.algorithm.loss(params, None, example, text)[1], prepared.examples
    )
    metrics = jax.jit(of_params)(params)
    assert metrics["largest_ratio_error"].max() < 1e-5
    assert metrics["kl_to_old"].max() < 1e-9
    moved = params | {"level": params["level"] + 0.1}
    experience, examples = made.algorithm.experience, prepared.examples
    (policy,) = made.algorithm.objectives

    def mean(params, update):
        latents, times = examples.latents[update], examples.times[update]
        output = experience.model.denoise(params, latents, times, text[:, 0])
        return policy.step(output[:, None], latents, examples.own["step_index"][update])

    for update, found in enumerate(jax.jit(of_params)(moved)["kl_to_old"]):
        old, new = mean(params, update), mean(moved, update)
        expected = ((np.asarray(new.mean) - old.mean) / new.std) ** 2 / 2
        np.testing.assert_allclose(found, expected.mean(), rtol=1e-3)


def test_the_means_are_not_compared_unless_it_is_asked_for():
    assert not objective().compares_means and "kl_to_old" not in objective().metrics
