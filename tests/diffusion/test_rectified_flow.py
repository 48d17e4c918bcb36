"""Rectified flow against PyTorch diffusers' FlowMatchEulerDiscreteScheduler and closed forms."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from diffusionrl_jax.diffusion.process import make_process, sensitivity
from diffusionrl_jax.diffusion.rectified_flow import (
    LEAST_TRAINED_STD,
    NOISE_RULES,
)
from diffusionrl_jax.diffusion.rollout import noise_keys, rollout

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
TOKENS = 1024
TOLERANCE = 1e-5


def make_theirs(changes, steps):
    """diffusers' scheduler, with timesteps set as the pipelines set them."""
    theirs = FlowMatchEulerDiscreteScheduler.from_config(
        {name: value for name, value in (FLOW | changes).items() if name != "timestep_spacing"}
    )
    sigmas = np.linspace(1, 1 / steps, steps) if "timestep_spacing" in changes else None
    theirs.set_timesteps(
        None if sigmas is not None else steps, sigmas=sigmas, mu=calculate_shift(TOKENS)
    )
    return theirs


def make_ours(changes, steps, **options):
    return make_process(FLOW | {"image_tokens": TOKENS} | changes, steps, **options)


@pytest.mark.parametrize("rule", NOISE_RULES)
@pytest.mark.parametrize("steps", [4, 28])
def test_without_noise_a_step_is_that_of_diffusers(rule, steps):
    theirs = make_theirs({}, steps)
    ours = make_ours({}, steps, noise=rule, eta=0.0)
    rng = np.random.default_rng(steps)
    output, latents = rng.standard_normal((2, steps, 4, 8, 8)).astype(np.float32)
    # Every step of the chain at once: each sample is at a step of its own.
    taken = ours.step(output, latents, jnp.arange(steps), 0.0)
    assert not np.any(taken.std)
    for index, timestep in enumerate(theirs.timesteps):
        tensors = torch.from_numpy(output[index]), timestep, torch.from_numpy(latents[index])
        expected = theirs.step(*tensors).prev_sample.numpy()
        np.testing.assert_allclose(taken.mean[index], expected, atol=TOLERANCE)


def test_noise_is_that_of_diffusers_and_the_clean_latents_come_back():
    theirs, ours = make_theirs({}, 10), make_ours({}, 10)
    clean, noise = np.random.default_rng(0).standard_normal((2, 10, 4, 8, 8)).astype(np.float32)
    tensors = torch.from_numpy(clean), theirs.timesteps, torch.from_numpy(noise)
    noisy = ours.noise(clean, noise, ours.times)
    np.testing.assert_allclose(noisy, theirs.scale_noise(*tensors).numpy(), atol=TOLERANCE)
    target = ours.target(clean, noise, ours.times)
    np.testing.assert_array_equal(target, noise - clean)
    np.testing.assert_allclose(ours.clean(target, noisy, ours.times), clean, atol=TOLERANCE)


def closed_form(rule, levels, index, eta, output, latents):
    """The published mean and deviation of a step, in float64: Eq. 9 of 2505.05470, 2509.05952."""
    time, following = levels[index], levels[index + 1]
    size = time - following
    if rule == "sde":
        noise = eta * np.sqrt(time / (1 - (levels[1] if time == 1 else time)))
        if following == 0:
            noise = 0.0
        drift = output + noise**2 / (2 * time) * (latents + (1 - time) * output)
        return latents - drift * size, noise * np.sqrt(size)
    clean, error = latents - time * output, latents + (1 - time) * output
    if rule == "cps":
        std = following * np.sin(eta * np.pi / 2)
    else:
        # The variance of the posterior q(x_s | x_t, x_0) of a chain with these marginals.
        kept = (1 - time) / (1 - following)
        std = eta * following / time * np.sqrt(time**2 - kept**2 * following**2)
    return (1 - following) * clean + np.sqrt(following**2 - std**2) * error, std


@pytest.mark.parametrize("rule", NOISE_RULES)
@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_mean_and_deviation_are_the_closed_form(rule, eta):
    ours = make_ours({}, 10, noise=rule)
    output, latents = np.random.default_rng(1).standard_normal((2, 10, 4, 8, 8))
    taken = ours.step(jnp.float32(output), jnp.float32(latents), jnp.arange(10), eta)
    levels = np.float64(ours.levels)
    for index in range(10):
        mean, std = closed_form(rule, levels, index, eta, output[index], latents[index])
        np.testing.assert_allclose(taken.mean[index], mean, atol=TOLERANCE)
        np.testing.assert_allclose(taken.std[index, 0, 0, 0], std, rtol=1e-5, atol=1e-7)
    assert taken.std[-1] == 0


def test_each_sample_may_have_its_own_noise():
    output, latents = np.random.default_rng(1).standard_normal((2, 6, 4, 4, 4)).astype(np.float32)
    index, etas = jnp.arange(6), jnp.float32([0, 0.7, 0, 0.7, 0.7, 0])
    for process in [make_ours({}, 7, noise=rule) for rule in NOISE_RULES] + [make_process({}, 7)]:
        mixed = process.step(output, latents, index, etas)
        for eta in (0.0, 0.7):
            alike = process.step(output, latents, index, eta)
            rows = np.flatnonzero(etas == jnp.float32(eta))
            np.testing.assert_array_equal(mixed.mean[rows], alike.mean[rows])
            np.testing.assert_array_equal(mixed.std[rows], alike.std[rows])


def test_eta_is_the_stochastic_solver_of_diffusers():
    """SDE-DPM-Solver++ of first order, which has eta 1."""
    ours = make_ours({}, 10)
    theirs = DPMSolverMultistepScheduler(
        **{"algorithm_type": "sde-dpmsolver++", "solver_order": 1, "use_flow_sigmas": True},
        **{"prediction_type": "flow_prediction"},
    )
    theirs.set_timesteps(10)
    theirs.sigmas = torch.from_numpy(np.array(ours.levels))
    output, latents, noise = np.random.default_rng(2).standard_normal((3, 10, 4, 8, 8), np.float32)
    taken = ours.step(output, latents, jnp.arange(10), 1.0)
    for index, time in enumerate(theirs.timesteps):
        output_, latents_, noise_ = (torch.from_numpy(x[index]) for x in (output, latents, noise))
        expected = theirs.step(output_, time, latents_, variance_noise=noise_).prev_sample
        drawn = taken.mean[index] + taken.std[index] * noise[index]
        np.testing.assert_allclose(drawn, expected.numpy(), atol=TOLERANCE)


@pytest.mark.parametrize("rule", NOISE_RULES)
def test_log_prob_and_kl_are_those_of_scipy_and_torch(rule):
    ours = make_ours({}, 10, noise=rule, eta=0.8)
    count = ours.stochastic_steps
    draw = np.random.default_rng(3).standard_normal
    output, latents, sample, other = draw((4, count, 4, 4, 4)).astype(np.float32)
    step = lambda output: ours.step(output, latents, jnp.arange(count), 0.8)
    taken, reference = step(output), step(other)
    log_prob = taken.log_prob(taken.mean + taken.std * sample)
    mean, std = np.float64(taken.mean), np.float64(taken.std)
    expected = scipy.stats.norm.logpdf(mean + std * sample, mean, std).mean((1, 2, 3))
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5, atol=1e-6)
    normal = lambda mean: torch.distributions.Normal(
        torch.tensor(np.float64(mean)), torch.tensor(std)
    )
    divergence = torch.distributions.kl_divergence(normal(taken.mean), normal(reference.mean))
    found = taken.kl_to(reference.mean)
    np.testing.assert_allclose(found, divergence.mean((1, 2, 3)), rtol=1e-5)


# |d mean / d output| / std of the trained steps on the grid of ten steps with a shift of 3, as
# another program in float64 found it.
SENSITIVITY = {
    "sde": [0.057, 0.078, 0.13, 0.19, 0.26, 0.37, 0.54, 0.83, 1.49],
    "cps": [0.044, 0.083, 0.13, 0.19, 0.28, 0.40, 0.60, 1.1],
}


@pytest.mark.parametrize(("rule", "eta"), [("sde", 0.7), ("cps", 0.8), ("eta", 1.0)])
def test_no_trained_step_drowns_the_others(rule, eta):
    ours = make_ours({}, 10, noise=rule, eta=eta)
    found, count = np.asarray(sensitivity(ours, eta)), ours.stochastic_steps
    print(rule, found)
    assert count == (9 if rule == "sde" else 8)
    for index in range(count):
        (still, std), (moved, _) = (
            closed_form(rule, np.float64(ours.levels), index, eta, output, 0.0) for output in (0, 1)
        )
        np.testing.assert_allclose(found[index], abs(moved - still) / std, rtol=1e-3)
    if rule in SENSITIVITY:
        np.testing.assert_allclose(found[:count], SENSITIVITY[rule], rtol=0.02, atol=0.005)
    # The gradient of the log-probability is in proportion. What is left out is beyond all others.
    assert found[:count].max() < 1.5
    assert found[count:].min() > 20 * found[:count].max()


@pytest.mark.parametrize(
    ("rule", "eta", "steps", "expected"),
    [("eta", 0.0, 10, 0), ("cps", 0.0, 10, 0), ("sde", 1.0, 1, 0), ("eta", 1.0, 1, 0),
     ("sde", 0.9, 6, 5), ("eta", 0.05, 10, 0), ("eta", 0.06, 10, 1)],
)  # fmt: skip
def test_a_step_is_trained_if_its_deviation_is_large_enough(rule, eta, steps, expected):
    ours = make_ours({}, steps, noise=rule, eta=eta)
    std = eta * ours.unit_std
    assert ours.stochastic_steps == expected
    assert (np.asarray(std) > LEAST_TRAINED_STD)[:expected].all()
    assert not np.any(std[expected : expected + 1] > LEAST_TRAINED_STD)


@pytest.mark.parametrize("rule", NOISE_RULES)
def test_steps_with_noise_are_as_likely_when_they_are_trained_on(rule):
    """In chains with noise at two steps alone, and the ODE elsewhere; the network in bfloat16."""
    ours, batch = make_ours({}, 6, noise=rule, eta=0.7), 16
    inside = np.isin(np.arange(6), (1, 2))
    etas = jnp.tile(jnp.where(inside, jnp.float32(0.7), 0), (batch, 1))

    def denoise(params, latents, times, text):
        return (
            jnp.sin(3 * latents.astype(jnp.bfloat16)).astype(jnp.float32) + params * times[:, None]
        )

    model = types.SimpleNamespace(denoise=denoise, latent_shape=(64,))
    keys = noise_keys(jax.random.split(jax.random.key(0), batch), 6)
    text, kept = jnp.zeros((batch, 1, 1)), jnp.tile(jnp.arange(6), (batch, 1))
    arguments = model, ours, 0.7, text, keys, kept
    _, taken = jax.jit(lambda: rollout(*arguments, eta=etas, guidance_scale=1.0))()

    @jax.jit
    def at(index, eta):
        places, latents = jnp.full(batch, index), taken.latents[:, index]
        return ours.step(denoise(0.7, latents, ours.times[places], text), latents, places, eta)

    for index in range(6):
        following = taken.following[:, index]
        if inside[index]:
            ratio = jnp.exp(at(index, 0.7).log_prob(following) - taken.log_probs[:, index])
            np.testing.assert_allclose(ratio, 1, atol=1e-5)
            assert np.abs(following - at(index, 0.0).mean).max() > 0.1
        else:
            np.testing.assert_allclose(following, at(index, 0.0).mean, atol=TOLERANCE)


@pytest.mark.parametrize("steps", [1, 16])
def test_second_order_is_the_solver_of_diffusers(steps):
    """The whole chain, with its times, which theirs rounds before the network sees them."""
    ours = make_ours({}, steps, order=2, eta=0.0)
    theirs = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    theirs.set_timesteps(steps)
    np.testing.assert_allclose(ours.levels, theirs.sigmas.numpy(), rtol=1e-6)
    denoise = lambda params, latents, times, text: jnp.sin(3 * latents) + params * times[:, None]
    model = types.SimpleNamespace(denoise=denoise, latent_shape=(5,))
    keys = noise_keys(jax.random.split(jax.random.key(0), 3), steps)
    text, kept = jnp.zeros((3, 1, 1)), jnp.tile(jnp.arange(steps), (3, 1))
    arguments = model, ours, 0.7, text, keys, kept
    last, taken = jax.jit(lambda: rollout(*arguments, eta=0.0, guidance_scale=1.0))()
    latents = torch.from_numpy(np.array(taken.latents[:, 0]))
    for time, level in zip(theirs.timesteps, theirs.sigmas, strict=False):
        latents = theirs.step(torch.sin(3 * latents) + 0.7 * level, time, latents).prev_sample
    np.testing.assert_allclose(last, latents.numpy(), atol=1e-4)


@pytest.mark.parametrize("drawn", ["logit_normal", "uniform"])
@pytest.mark.parametrize(("bounds", "shift"), [((0.0, 1.0), 1.0), ((0.2, 0.6), 3.0)])
def test_times_are_drawn_as_published(drawn, bounds, shift):
    """Before the shift they are uniform, or their logits are normal; cut to the bounds."""
    ours = make_ours({"shift": shift}, 10, training_times=drawn)
    keys = jax.random.split(jax.random.key(0), 4000)
    times = np.float64(jax.vmap(lambda key: ours.draw_time(key, *bounds))(keys))
    assert bounds[0] <= times.min() and times.max() <= bounds[1]

    def cumulative(times):
        before = times / (shift - (shift - 1) * times)
        with np.errstate(divide="ignore"):
            logits = scipy.special.logit(before)
        return scipy.stats.norm.cdf(logits) if drawn == "logit_normal" else before

    least, most = cumulative(np.array(bounds))
    uniform = (cumulative(times) - least) / (most - least)
    # 4000 uniform numbers are further off than this in one of 100,000 seeds.
    assert scipy.stats.kstest(uniform, "uniform").statistic < 0.039


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"use_karras_sigmas": True}, {}, "use_karras_sigmas True is not supported"),
        ({}, {"order": 2}, "order=2 is for chains without noise: set config.sampler.eta to 0"),
    ],
)
def test_refuses_what_it_would_get_wrong(changes, options, message):
    with pytest.raises(ValueError, match=message):
        make_ours(changes, 10, **options)
