"""The emoji world's pictures as latents, which its denoisers are trained on."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.data.emoji import pictures
from diffusionrl_jax.distributed.mesh import batch_sharding

TEST_SEED = 10**6


def draw(seed: int, start: int, count: int) -> list[pictures.Example]:
    """Draws the pictures `start` to `start + count` - 1 of an endless series."""
    return [
        pictures.random_example(np.random.default_rng((seed, index)))
        for index in range(start, start + count)
    ]


def stack_images(examples: list[pictures.Example]) -> np.ndarray:
    """Stacks the examples' pictures, float32 [n, 32, 32, 3] in [0, 1]."""
    return np.stack([example.image for example in examples]).astype(np.float32) / 255


def latent_pool(model, vae_params, mesh, count):
    """Encodes pictures to train a denoiser on, and measures the VAE.

    Returns:
      The latents' means and standard deviations, each [N, 4, 8, 8], with `count` rounded up to a
      multiple of 512, the prompts, and the VAE's PSNR in dB on 1,024 other pictures: that of their
      mean squared error, and the mean of their own.
    """
    encode = jax.jit(lambda images: model.encode(vae_params, images))
    decode = jax.jit(lambda latents: model.decode(vae_params, latents))
    held_out = stack_images(draw(TEST_SEED, 0, 1024))
    means, stds, prompts = [], [], []
    errors = []
    for start in range(0, len(held_out), 512):
        images = jax.device_put(held_out[start : start + 512], batch_sharding(mesh))
        errors.append(jnp.mean(jnp.square(decode(encode(images)[0]) - images), axis=(1, 2, 3)))
    errors = np.concatenate(errors)
    for start in range(0, count, 512):
        examples = draw(2, start, 512)
        mean, std = encode(jax.device_put(stack_images(examples), batch_sharding(mesh)))
        means.append(np.asarray(mean))
        stds.append(np.asarray(std))
        prompts += [example.prompt for example in examples]
    psnr = (-10 * np.log10(errors.mean()), np.mean(-10 * np.log10(errors)))
    return np.concatenate(means), np.concatenate(stds), prompts, psnr


def draw_rows(rows, empty, dropout: float, key):
    """Draws what a denoiser is trained on, from rows of a pool.

    Args:
      rows: the latents' means and standard deviations, and the prompts' tokens, of a batch.
      empty: the tokens of the empty prompt.
      dropout: how often that takes a prompt's place.
      key: a PRNG key.

    Returns:
      The latents, noise of their shape, a number between 0 and 1 for each row's time, stratified
      over the batch, so that the loss is less noisy, and the tokens.
    """
    mean, std, ids = rows
    keys = jax.random.split(key, 4)
    clean = mean + std * jax.random.normal(keys[0], mean.shape)
    noise = jax.random.normal(keys[1], mean.shape)
    spread = (jnp.arange(len(mean)) + jax.random.uniform(keys[2], (len(mean),))) / len(mean)
    dropped = jax.random.bernoulli(keys[3], dropout, (len(mean), 1))
    return clean, noise, spread, jnp.where(dropped, empty, ids)
