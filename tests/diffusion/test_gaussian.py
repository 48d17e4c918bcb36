"""The denoising step against PyTorch diffusers' DDIMScheduler, its density against torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusionrl_jax.diffusion.ddim import make_ddim
from diffusionrl_jax.diffusion.gaussian import Gaussian
from diffusionrl_jax.models.folders.published import NOISE_SCHEDULE

TOLERANCE = 1e-5


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("set_alpha_to_one", [False, True])
@pytest.mark.parametrize(("eta", "steps"), [(0.0, 20), (0.0, 50), (1.0, 20), (1.0, 50), (0.5, 50)])
def test_step_is_that_of_diffusers(prediction_type, set_alpha_to_one, eta, steps):
    config = NOISE_SCHEDULE | {
        "prediction_type": prediction_type,
        "set_alpha_to_one": set_alpha_to_one,
    }
    theirs = DDIMScheduler(**config)
    theirs.set_timesteps(steps)
    process = make_ddim(config, steps)
    rng = np.random.default_rng(steps)
    output, latents, noise = rng.standard_normal((3, steps, 4, 8, 8)).astype(np.float32)
    # Every step of the chain at once: each sample is at a step of its own.
    taken = process.step(output, latents, jnp.arange(steps), eta)
    mean, std = taken.mean, taken.std
    for index, timestep in enumerate(theirs.timesteps):
        expected = theirs.step(
            torch.from_numpy(output[index]),
            timestep,
            torch.from_numpy(latents[index]),
            eta=eta,
            variance_noise=torch.from_numpy(noise[index]),
        ).prev_sample.numpy()
        # Of predicted noise, the first steps' clean latents are up to 15 times as large.
        scale = max(1, np.abs(expected).max())
        difference = np.abs(mean[index] + std[index] * noise[index] - expected).max()
        assert difference <= TOLERANCE * scale, index


def test_log_prob_is_that_of_torch():
    rng = np.random.default_rng(0)
    sample, mean = rng.standard_normal((2, 5, 4, 8, 8)).astype(np.float32)
    std = rng.uniform(0.02, 1, (5, 1, 1, 1)).astype(np.float32)
    ours = Gaussian(mean, std).log_prob(sample)
    normal = torch.distributions.Normal(torch.from_numpy(mean), torch.from_numpy(std))
    expected = normal.log_prob(torch.from_numpy(sample)).mean(dim=(1, 2, 3))
    assert ours.shape == (5,)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=TOLERANCE)


def test_log_prob_of_a_deterministic_step_is_finite():
    latents = jnp.ones((1, 4, 2, 2))
    value, gradient = jax.value_and_grad(
        lambda mean: Gaussian(mean, jnp.zeros((1, 1, 1, 1))).log_prob(latents)[0]
    )(latents)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_kl_divergence_is_that_of_torch():
    rng = np.random.default_rng(7)
    mean, reference = rng.standard_normal((2, 3, 4, 8, 8)).astype(np.float32)
    std = np.array([0.05, 0.5, 2.0], np.float32).reshape(3, 1, 1, 1)
    normal = lambda mean: torch.distributions.Normal(torch.tensor(mean), torch.tensor(std))
    expected = torch.distributions.kl_divergence(normal(mean), normal(reference)).mean((1, 2, 3))
    found = Gaussian(mean, std).kl_to(reference)
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)
    assert np.isfinite(Gaussian(mean, 0 * std).kl_to(reference)).all()
