"""The sampled chain against diffusers' DDIMScheduler, with a network that is a closed form."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusionrl_jax.diffusion.rollout import conditions, noise_keys, rollout
from diffusionrl_jax.diffusion.schedule import make_schedule
from diffusionrl_jax.models.published import NOISE_SCHEDULE
from diffusionrl_jax.models.text_encoders import Conditioning

STEPS, SHAPE, SCALE = 4, (4, 8, 8), 3.0


def denoise(params, latents, timesteps, text):
    """Depends on everything that the UNet depends on; all texts of a sample see its latents."""
    passes = len(text) // len(latents)
    latents, timesteps = (jnp.repeat(array, passes, axis=0) for array in (latents, timesteps))
    shift = text.mean((1, 2)) + timesteps / 1000
    return params * jnp.tanh(latents) + shift[:, None, None, None]


def tensor(array):
    return torch.from_numpy(np.array(array))


MODEL = types.SimpleNamespace(denoise=denoise, latent_shape=SHAPE)


def sample(keys, embeddings, eta=1.0, guidance_scale=SCALE):
    text = conditions(embeddings, jnp.full((5, 3), 0.2), guidance_scale)
    schedule = make_schedule(NOISE_SCHEDULE, STEPS)
    return jax.jit(
        lambda text, keys: rollout(
            MODEL,
            schedule,
            0.7,
            text,
            noise_keys(keys, STEPS),
            eta=eta,
            guidance_scale=guidance_scale,
        )
    )(text, keys)


@pytest.fixture(scope="module")
def embeddings():
    return jnp.asarray(np.random.default_rng(0).standard_normal((6, 5, 3)), jnp.float32)


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(1), 6)


@pytest.mark.parametrize("guidance_scale", [1.0, SCALE])
def test_chain_is_that_of_diffusers(embeddings, keys, guidance_scale):
    trajectory = sample(keys, embeddings, guidance_scale=guidance_scale)
    assert trajectory.latents.shape == (6, STEPS + 1, *SHAPE)
    scheduler = DDIMScheduler(**NOISE_SCHEDULE)
    scheduler.set_timesteps(STEPS)
    noise = [np.asarray(trajectory.latents[:, 0])]
    for index, timestep in enumerate(scheduler.timesteps):
        latents, following = trajectory.latents[:, index], trajectory.latents[:, index + 1]
        times = np.full(6, int(timestep))
        conditional = denoise(0.7, latents, times, embeddings)
        empty = denoise(0.7, latents, times, jnp.full((6, 5, 3), 0.2))
        output = empty + guidance_scale * (conditional - empty)
        mean = scheduler.step(
            tensor(output),
            timestep,
            tensor(latents),
            eta=1.0,
            variance_noise=torch.zeros(6, *SHAPE),
        ).prev_sample
        std = scheduler._get_variance(timestep, timestep - 1000 // STEPS) ** 0.5
        density = torch.distributions.Normal(mean, std).log_prob(tensor(following))
        np.testing.assert_allclose(
            trajectory.log_probs[:, index], density.mean((1, 2, 3)).numpy(), atol=1e-5
        )
        noise.append((np.asarray(following) - mean.numpy()) / std.numpy())
    # 6 x 256 draws a step: their mean has a standard error of 0.026, their deviation of 0.018.
    noise = np.stack(noise, axis=1)
    np.testing.assert_allclose(noise.mean((0, 2, 3, 4)), 0, atol=0.1)
    np.testing.assert_allclose(noise.std((0, 2, 3, 4)), 1, atol=0.08)
    # No two samples, and no two steps, share their noise.
    correlation = np.corrcoef(noise.reshape(6 * (STEPS + 1), -1))
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.3


def test_conditioning_of_several_arrays_is_stacked_leaf_by_leaf():
    draw = np.random.default_rng(0).standard_normal
    prompts = Conditioning(draw((6, 5, 3)), draw((6, 2)), np.tile(np.arange(6.0), (6, 1)))
    empty = Conditioning(np.zeros((1, 5, 3)), np.zeros((1, 2)), np.arange(6.0)[None])
    guided = conditions(prompts, empty, SCALE)
    assert guided.states.shape == (6, 2, 5, 3)
    np.testing.assert_array_equal(guided.pooled[:, 0], prompts.pooled.astype(np.float32))
    np.testing.assert_array_equal(guided.pooled[:, 1], 0)
    np.testing.assert_array_equal(guided.time_ids[:, 1], prompts.time_ids)
    assert conditions(prompts, empty, 1).states.shape == (6, 1, 5, 3)


def test_each_sample_depends_on_its_own_key(embeddings, keys):
    whole = sample(keys, embeddings)
    part = sample(keys[2:4], embeddings[2:4])
    np.testing.assert_allclose(part.latents, whole.latents[2:4], atol=1e-5)
    np.testing.assert_allclose(part.log_probs, whole.log_probs[2:4], atol=1e-5)


def test_without_eta_the_chain_is_deterministic(embeddings, keys):
    latents = sample(keys, embeddings, eta=0.0).latents
    scheduler = DDIMScheduler(**NOISE_SCHEDULE)
    scheduler.set_timesteps(STEPS)
    current = latents[:, 0]
    for timestep in scheduler.timesteps:
        times = np.full(6, int(timestep))
        conditional = denoise(0.7, current, times, embeddings)
        empty = denoise(0.7, current, times, jnp.full((6, 5, 3), 0.2))
        output = tensor(empty + SCALE * (conditional - empty))
        current = scheduler.step(output, timestep, tensor(current)).prev_sample.numpy()
    np.testing.assert_allclose(latents[:, -1], current, rtol=1e-4, atol=1e-4)
