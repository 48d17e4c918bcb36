"""Rectified flow against PyTorch diffusers' FlowMatchEulerDiscreteScheduler and closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusionrl_jax.diffusion.process import make_process

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
TOKENS = 1024
# Every change by itself, and what FLUX's pipeline hands to its scheduler.
CHANGES = {
    "stable_diffusion_3": {},
    "no_shift": {"shift": 1.0},
    "dynamic": {"use_dynamic_shifting": True},
    "linear": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "terminal": {"shift_terminal": 0.02},
    "few_timesteps": {"num_train_timesteps": 100},
    "flux": {"use_dynamic_shifting": True, "timestep_spacing": "trailing"},
    "flux_schnell": {"shift": 1.0, "timestep_spacing": "trailing"},
}
STEPS = [4, 10, 28, 40]
TOLERANCE = 1e-5


def make_theirs(changes, steps):
    """diffusers' scheduler, with timesteps set as the pipelines set them."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

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


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("steps", STEPS)
def test_times_are_those_of_diffusers(change, steps):
    theirs, ours = make_theirs(change, steps), make_ours(change, steps)
    assert ours.steps == steps
    # Both end in float32.
    np.testing.assert_allclose(ours.levels, theirs.sigmas.numpy(), rtol=3e-7)
    training = theirs.config.num_train_timesteps
    np.testing.assert_allclose(training * ours.times, theirs.timesteps.numpy(), rtol=3e-7)


def test_the_least_time_is_shifted_twice():
    """The grid of ten steps that SD 3's pipeline was seen to walk."""
    expected = [1, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0]
    np.testing.assert_allclose(make_ours({}, 10).levels, expected, atol=5e-5)


@pytest.mark.parametrize("rule", ["eta", "cps", "sde"])
@pytest.mark.parametrize("steps", STEPS)
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
