"""Trains the emoji world's Stable Diffusion from scratch.

    python -m diffusionrl_jax.emoji_world.train_stable_diffusion --output=FOLDER

The VAE is trained first, on freshly drawn pictures, then the text encoder and the UNet together on
its latents. This takes an hour and a half on 2 idle cores. With `--vae` and `--init` training
continues from an earlier folder, as was done several times for the shipped model: see
docs/emoji_world.md.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from diffusionrl_jax.command_line import start
from diffusionrl_jax.data.files import as_path
from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.emoji_world import emoji_model
from diffusionrl_jax.emoji_world.latent_pool import draw, draw_rows, latent_pool, stack_images
from diffusionrl_jax.emoji_world.optimisation import annealed, train
from diffusionrl_jax.models.stable_diffusion.build import (
    build_stable_diffusion,
    init_stable_diffusion,
)
from diffusionrl_jax.models.stable_diffusion.folder import (
    load_stable_diffusion,
    save_stable_diffusion,
)

OUTPUT = flags.DEFINE_string("output", None, "The diffusers folder to write.", required=True)
VAE = flags.DEFINE_string("vae", None, "Take the VAE of this folder instead of training one.")
INIT = flags.DEFINE_string("init", None, "Start the UNet and text encoder from this folder.")
VAE_STEPS = flags.DEFINE_integer("vae_steps", 6000, "Optimiser steps of 32 pictures.")
UNET_STEPS = flags.DEFINE_integer("unet_steps", 6000, "Optimiser steps of 128 latents.")
UNET_LEARNING_RATE = flags.DEFINE_float("unet_learning_rate", 1e-3, "Peak, AdamW.")
POOL = flags.DEFINE_integer("pool", 49152, "Pictures whose latents the UNet is trained on.")
TEXT_DROPOUT = 0.1


def train_vae(model, params, mesh, steps, checkpoint):
    """Trains the VAE on squared and a little absolute error, with a light pull to normal latents.

    The arguments and the result are those of `train`.
    """

    def loss_function(vae_params, images, key):
        variables = {"params": vae_params}
        pixels = (2 * images - 1).transpose(0, 3, 1, 2)
        posterior = model.vae.apply(variables, pixels, method=model.vae.encode).latent_dist
        latents = posterior.mean + posterior.std * jax.random.normal(key, posterior.mean.shape)
        output = model.vae.apply(variables, latents, method=model.vae.decode).sample
        squared = jnp.mean(jnp.square(output - pixels))
        absolute = jnp.mean(jnp.abs(output - pixels))
        divergence = 0.5 * jnp.mean(
            jnp.square(posterior.mean) + posterior.var - 1 - posterior.logvar
        )
        loss = squared + 0.03 * absolute + 5e-5 * divergence
        return loss, {"squared": squared, "divergence": divergence}

    batches = lambda step: stack_images(draw(1, 32 * step, 32))
    schedule = annealed(2e-3, steps)
    return train("vae", loss_function, params, batches, schedule, steps, mesh, checkpoint)


def _swap_endings(text, ids):
    """Gives every prompt the states of another one from its end-of-text token on.

    These states sum up the whole prompt. A UNet that reads them draws only the pairs that it knows;
    one that has to read the nouns themselves also draws pairs of which it has only seen the objects
    alone.

    Args:
      text: the text encoder's states, float32 [batch, tokens, width].
      ids: the prompts' tokens, int32 [batch, tokens].
    """
    ended = jnp.cumsum(ids == ids[:, -1:], axis=1)[..., None] > 0
    other, other_ended = jnp.roll(text, 1, axis=0), jnp.roll(ended, 1, axis=0)
    return jnp.where(ended, jnp.where(other_ended, other, other[:, -1:]), text)


def train_unet(model, params, pool, mesh, steps, learning_rate, checkpoint):
    """Trains the UNet and the text encoder with the denoising loss (Eqs. 8-9) on cached latents.

    Args:
      model: the networks.
      params: the parameters to start from, "unet" and "text_encoder".
      pool: the latents' means and standard deviations, scaled, and the prompts.
      mesh, steps, learning_rate, checkpoint: as in `train`.
    """
    means, stds, prompts = pool
    # The schedule's training part does not depend on the number of sampling steps.
    process = make_process(model.scheduler_config, 1)
    ids = model.tokenize(prompts)
    empty = model.tokenize([""])[0]

    def loss_function(params, batch, key):
        clean, noise, spread, ids = draw_rows(batch, empty, TEXT_DROPOUT, key)
        timesteps = (spread * 1000).astype(jnp.int32)
        text = _swap_endings(model.encode_text(params["text_encoder"], ids), ids)
        noisy = process.noise(clean, noise, timesteps)
        output = model.denoise(params["unet"], noisy, timesteps, text)
        loss = jnp.mean(jnp.square(output - process.target(clean, noise, timesteps)))
        return loss, {"loss": loss}

    def batches(step):
        rows = np.random.default_rng((3, step)).integers(0, len(means), 128)
        return means[rows], stds[rows], ids[rows]

    schedule = annealed(learning_rate, steps)
    return train("unet", loss_function, params, batches, schedule, steps, mesh, checkpoint)


def main(_):
    mesh = make_mesh()
    output = as_path(OUTPUT.value, "--output")
    # Equally frequent pairs of tokens are merged in any order, so the same tokenizer is used again.
    initial, initial_params = load_stable_diffusion(INIT.value) if INIT.value else (None, None)
    tokenizer = initial.tokenizer if initial else emoji_model.train_tokenizer()
    model, params = init_stable_diffusion(
        emoji_model.configs(tokenizer, scaling_factor=1.0), jax.random.key(0), tokenizer
    )
    if VAE.value:
        params["vae"] = load_stable_diffusion(VAE.value)[1]["vae"]
    else:
        save_vae = lambda vae: save_stable_diffusion(
            output, model, params | {"vae": vae}, "float32"
        )
        params["vae"] = train_vae(model, params["vae"], mesh, VAE_STEPS.value, save_vae)
    means, stds, prompts, psnr = latent_pool(model, params["vae"], mesh, POOL.value)
    scaling_factor = float(1 / np.sqrt(np.mean(means**2 + stds**2)))
    print(f"PSNR {psnr} dB, scaling factor {scaling_factor}", flush=True)
    model = build_stable_diffusion(emoji_model.configs(tokenizer, scaling_factor), tokenizer)
    if initial_params is not None:
        params |= {name: initial_params[name] for name in ("unet", "text_encoder")}

    def save(trained, dtype="float32"):
        save_stable_diffusion(output, model, params | trained, dtype)

    trained = train_unet(
        model,
        {name: params[name] for name in ("unet", "text_encoder")},
        (means * scaling_factor, stds * scaling_factor, prompts),
        mesh,
        UNET_STEPS.value,
        UNET_LEARNING_RATE.value,
        save,
    )
    save(trained, "float16")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    start.set_virtual_devices()
    app.run(main)
