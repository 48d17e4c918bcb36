"""The losses that the emoji world's Stable Diffusion is trained by, on networks of closed form."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusionrl_jax.emoji_world import emoji_model
from tests.own_flags import program


@pytest.fixture
def module(monkeypatch, hasty):
    """The program, which hands back what it would train: (loss function, batches)."""
    with program("emoji_world.train_stable_diffusion", "--output=x") as module:
        kept = lambda name, loss, params, batches, *rest: (loss, batches)
        monkeypatch.setattr(module, "train", kept)
        yield module


def test_the_vaes_loss_is_its_error_and_torchs_divergence(module):
    rng = np.random.default_rng(0)
    mean, images = rng.standard_normal((2, 3, 4, 4, 3)).astype(np.float32)
    std = rng.uniform(0.5, 2, mean.shape).astype(np.float32)
    seen = []

    def encode(pixels):
        seen.append(pixels)
        drawn = {"mean": mean, "std": std, "var": std**2, "logvar": 2 * np.log(std)}
        return types.SimpleNamespace(latent_dist=types.SimpleNamespace(**drawn))

    def decode(latents):
        seen.append(latents)
        return types.SimpleNamespace(sample=seen[0] + 0.5)

    vae = types.SimpleNamespace(encode=encode, decode=decode)
    vae.apply = lambda variables, array, method: method(array)
    loss, _ = module.train_vae(types.SimpleNamespace(vae=vae), {}, None, 10, None)
    found, metrics = loss({}, images, jax.random.key(0))
    np.testing.assert_allclose(seen[0], 2 * images.transpose(0, 3, 1, 2) - 1, atol=1e-6)
    drawn = (seen[1] - mean) / std
    assert drawn.std() == pytest.approx(1, abs=0.2)
    normal = torch.distributions.Normal
    posterior = normal(torch.from_numpy(mean), torch.from_numpy(std))
    divergence = torch.distributions.kl_divergence(posterior, normal(0.0, 1.0)).mean().item()
    assert float(metrics["divergence"]) == pytest.approx(divergence, rel=1e-5)
    assert float(found) == pytest.approx(0.25 + 0.03 * 0.5 + 5e-5 * divergence, rel=1e-5)


def test_endings_are_those_of_the_prompt_before(module):
    """From its end on, a prompt has what the one before says there, or its last state."""
    ids = jnp.array([[1, 5, 9, 9, 9], [1, 5, 6, 7, 9], [1, 9, 9, 9, 9]])
    text = jnp.arange(15.0).reshape(3, 5, 1)
    found = module._swap_endings(text, ids)[..., 0]
    np.testing.assert_array_equal(found, [[0, 1, 12, 13, 14], [5, 6, 7, 8, 4], [10, 9, 9, 9, 9]])


def test_a_unet_that_knows_the_pictures_has_no_loss(module):
    """They are all zeros: the noise is what is seen, over its deviation as diffusers has it."""
    alphas = jnp.asarray(DDIMScheduler(**emoji_model.SCHEDULER).alphas_cumprod.numpy())
    seen = []

    def denoise(params, latents, timesteps, text):
        seen.append((timesteps, text))
        return params * latents / jnp.sqrt(1 - alphas[timesteps])[:, None, None, None]

    ids = np.tile(np.int32([1, 5, 9, 9]), (64, 1))
    model = types.SimpleNamespace(
        scheduler_config=emoji_model.SCHEDULER,
        tokenize=lambda prompts: ids[: len(prompts)],
        encode_text=lambda params, ids: ids[..., None] * 1.0,
        denoise=denoise,
    )
    zeros = np.zeros((64, 4, 2, 2), np.float32)
    pool = zeros, zeros, ["a cat"] * 64
    loss, batches = module.train_unet(model, {}, pool, None, 10, 1e-3, None)
    rows = batches(0)
    assert [len(array) for array in rows] == [128] * 3
    value, _ = loss({"unet": 1.0, "text_encoder": {}}, rows, jax.random.key(0))
    assert float(value) < 1e-10
    # A network that says nothing misses noise of variance 1: 2,048 draws.
    value, _ = loss({"unet": 0.0, "text_encoder": {}}, rows, jax.random.key(0))
    assert float(value) == pytest.approx(1, abs=0.15)
    timesteps, text = seen[0]
    # Stratified over all timesteps.
    assert np.abs(np.asarray(timesteps) / 1000 - (np.arange(128) + 0.5) / 128).max() < 0.0055
    assert text.shape == (128, 4, 1)
