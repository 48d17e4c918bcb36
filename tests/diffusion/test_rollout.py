"""The sampled chain against diffusers' DDIMScheduler, with a network that is a closed form."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusionrl_jax.diffusion.guidance import conditions
from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.diffusion.rollout import noise_keys, rollout
from diffusionrl_jax.models.folders.published import NOISE_SCHEDULE

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


def sample(keys, embeddings, kept=None, eta=1.0, guidance_scale=SCALE):
    """The final latents and the steps that are kept, or all of them."""
    kept = jnp.tile(jnp.arange(STEPS), (len(keys), 1)) if kept is None else kept
    text = conditions(embeddings, jnp.full((5, 3), 0.2), guidance_scale)
    process = make_process(NOISE_SCHEDULE, STEPS)
    return jax.jit(
        lambda text, keys, kept: rollout(
            MODEL,
            process,
            0.7,
            text,
            noise_keys(keys, STEPS),
            kept,
            eta=eta,
            guidance_scale=guidance_scale,
        )
    )(text, keys, kept)


@pytest.fixture(scope="module")
def embeddings():
    return jnp.asarray(np.random.default_rng(0).standard_normal((6, 5, 3)), jnp.float32)


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(1), 6)


@pytest.mark.parametrize(
    "guidance_scale",
    [
        0.0,
        0.5,
        1.0,
        pytest.param(1.001, marks=pytest.mark.slow),
        SCALE,
        pytest.param(20.0, marks=pytest.mark.slow),
    ],
)
def test_chain_is_that_of_diffusers(embeddings, keys, guidance_scale):
    last, steps = sample(keys, embeddings, guidance_scale=guidance_scale)
    assert steps.latents.shape == (6, STEPS, *SHAPE)
    np.testing.assert_array_equal(steps.following[:, :-1], steps.latents[:, 1:])
    np.testing.assert_array_equal(steps.following[:, -1], last)
    scheduler = DDIMScheduler(**NOISE_SCHEDULE)
    scheduler.set_timesteps(STEPS)
    noise = [np.asarray(steps.latents[:, 0])]
    for index, timestep in enumerate(scheduler.timesteps):
        latents, following = steps.latents[:, index], steps.following[:, index]
        times = np.full(6, int(timestep))
        conditional = denoise(0.7, latents, times, embeddings)
        empty = denoise(0.7, latents, times, jnp.full((6, 5, 3), 0.2))
        # PyTorch's pipelines guide above 1 only.
        guided = guidance_scale > 1
        output = empty + guidance_scale * (conditional - empty) if guided else conditional
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
            steps.log_probs[:, index], density.mean((1, 2, 3)).numpy(), atol=1e-5
        )
        noise.append((np.asarray(following) - mean.numpy()) / std.numpy())
    # 6 x 256 draws a step: their mean has a standard error of 0.026, their deviation of 0.018.
    noise = np.stack(noise, axis=1)
    np.testing.assert_allclose(noise.mean((0, 2, 3, 4)), 0, atol=0.1)
    np.testing.assert_allclose(noise.std((0, 2, 3, 4)), 1, atol=0.08)
    # No two samples, and no two steps, share their noise.
    correlation = np.corrcoef(noise.reshape(6 * (STEPS + 1), -1))
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.3


def test_each_sample_keeps_its_own_steps(embeddings, keys):
    """Bit for bit those of a chain of which everything is kept, in the order asked for."""
    last, everything = sample(keys, embeddings)
    kept = np.array([[2, 0], [1, 2], [3, 1], [0, 3], [3, 2], [0, 1]])
    same_last, steps = sample(keys, embeddings, kept)
    np.testing.assert_array_equal(same_last, last)
    rows = np.arange(6)[:, None]
    jax.tree.map(
        lambda ours, all_: np.testing.assert_array_equal(ours, np.asarray(all_)[rows, kept]),
        *(steps, everything),
    )
    _, none = sample(keys, embeddings, np.zeros((6, 0), np.int32))
    assert none.latents.shape == (6, 0, *SHAPE)


def test_memory_does_not_grow_with_the_chain():
    """Whatever the program holds: its temporaries and what it gives."""
    samples, kept = 16, 2

    def held(steps):
        process = make_process(NOISE_SCHEDULE, steps)
        program = jax.jit(
            lambda text, keys, kept: rollout(
                *(MODEL, process, 0.7, text, noise_keys(keys, steps), kept),
                eta=1.0,
                guidance_scale=1.0,
            )
        )
        arguments = (
            jax.ShapeDtypeStruct((samples, 1, 5, 3), jnp.float32),
            jax.eval_shape(lambda: jax.random.split(jax.random.key(0), samples)),
            jax.ShapeDtypeStruct((samples, kept), jnp.int32),
        )
        memory = program.lower(*arguments).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    one = 4 * np.prod(SHAPE) * samples
    short = held(10)
    assert short >= (1 + 2 * kept) * one
    # A step's keys, a few copies of 8 bytes a sample, remain; latents have 1024.
    assert held(50) - short < 40 * one / 10


def test_each_sample_depends_on_its_own_key(embeddings, keys):
    _, whole = sample(keys, embeddings)
    _, part = sample(keys[2:4], embeddings[2:4])
    np.testing.assert_allclose(part.latents, whole.latents[2:4], atol=1e-5)
    np.testing.assert_allclose(part.log_probs, whole.log_probs[2:4], atol=1e-5)


def test_without_eta_the_chain_is_deterministic(embeddings, keys):
    last, steps = sample(keys, embeddings, eta=0.0)
    scheduler = DDIMScheduler(**NOISE_SCHEDULE)
    scheduler.set_timesteps(STEPS)
    current = steps.latents[:, 0]
    for timestep in scheduler.timesteps:
        times = np.full(6, int(timestep))
        conditional = denoise(0.7, current, times, embeddings)
        empty = denoise(0.7, current, times, jnp.full((6, 5, 3), 0.2))
        output = tensor(empty + SCALE * (conditional - empty))
        current = scheduler.step(output, timestep, tensor(current)).prev_sample.numpy()
    np.testing.assert_allclose(last, current, rtol=1e-4, atol=1e-4)
