"""Trains the emoji world's Stable Diffusion 3 from scratch.

    python -m diffusionrl_jax.emoji_world.train_stable_diffusion_3 --output=FOLDER --state=FILE

The transformer and the text encoders are trained together on the latents of the shipped VAE, by the
loss of flow matching. The learning rate is constant, so that training goes on for as long as one
likes: the same command goes on from the state, with a larger `--steps`, and one with `--annealing`
lets the rate fall over the last steps. See docs/emoji_world.md.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import traverse_util
from jax.scipy.special import ndtri

from diffusionrl_jax.data.files import as_path
from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.emoji_world.flow_model import init_flow_model
from diffusionrl_jax.emoji_world.latent_pool import draw_rows, latent_pool
from diffusionrl_jax.emoji_world.optimisation import constant, train
from diffusionrl_jax.models.mmdit.folder import save_mmdit
from diffusionrl_jax.models.parameters import flatten
from diffusionrl_jax.models.text_encoders import Conditioning

OUTPUT = flags.DEFINE_string("output", None, "The diffusers folder to write.", required=True)
STATE = flags.DEFINE_string("state", None, "File from which training goes on.", required=True)
VAE = flags.DEFINE_string("vae", "asset:emoji/stable_diffusion", "Folder of VAE and tokenizer.")
STEPS = flags.DEFINE_integer("steps", 20000, "All optimiser steps of 128 latents, from the first.")
ANNEALING = flags.DEFINE_integer("annealing", 0, "Over so many of the last, the rate falls.")
LEARNING_RATE = flags.DEFINE_float("learning_rate", 2e-3, "Before it falls, AdamW.")
POOL = flags.DEFINE_integer("pool", 49152, "Pictures whose latents it is trained on.")
BATCH = 128
TEXT_DROPOUT = 0.1
# The standard deviation of the times' logit. It is 1 in 2403.03206 (Eq. 19); the first of few steps
# begins at time 1, near which fewer would be drawn.
TIME_DEVIATION = 1.2
# What is zero at first, so that every block passes on what it is given, and the output is zero
# (2212.09748).
SILENT = ("norm1", "norm1_context", "norm_out", "proj_out")


def silenced(transformer):
    """Returns fresh parameters of a transformer, with those that are `SILENT` set to zero."""
    flat = flatten(transformer)
    silent = {path: np.zeros_like(leaf) for path, leaf in flat.items() if set(path) & set(SILENT)}
    return traverse_util.unflatten_dict(flat | silent)


def train_transformer(model, params, pool, mesh, steps, schedule, checkpoint, state_file=None):
    """Trains the transformer and the text encoders on cached latents (2403.03206, Sec. 3).

    Args:
      model: the networks.
      params: the parameters to start from, "transformer" and "text_encoder".
      pool: the latents' means and standard deviations, scaled, and the prompts.
      mesh, steps, schedule, checkpoint, state_file: as in `train`.
    """
    means, stds, prompts = pool
    # How pictures are noised does not depend on the number of sampling steps.
    process = make_process(model.scheduler_config, 1)
    ids = model.tokenize(prompts)
    empty = model.tokenize([""])[0]

    def loss_function(params, batch, key):
        clean, noise, spread, ids = draw_rows(batch, empty, TEXT_DROPOUT, key)
        times = jax.nn.sigmoid(TIME_DEVIATION * ndtri(spread))
        text = model.encode_text(params["text_encoder"], ids)
        # The projected states sum up the whole prompt. A transformer that reads them draws only the
        # pairs that it knows, so that it is shown another prompt's.
        text = Conditioning(text.states, jnp.roll(text.pooled, 1, axis=0))
        noisy = process.noise(clean, noise, times)
        output = model.denoise(params["transformer"], noisy, times, text)
        loss = jnp.mean(jnp.square(output - process.target(clean, noise, times)))
        return loss, {"loss": loss}

    def batches(step):
        rows = np.random.default_rng((3, step)).integers(0, len(means), BATCH)
        return means[rows], stds[rows], ids[rows]

    return train(
        "transformer", loss_function, params, batches, schedule, steps, mesh, checkpoint, state_file
    )


def main(_):
    mesh = make_mesh()
    output = as_path(OUTPUT.value, "--output")
    model, params = init_flow_model(VAE.value, jax.random.key(0))
    params["transformer"] = silenced(params["transformer"])
    means, stds, prompts, psnr = latent_pool(model, params["vae"], mesh, POOL.value)
    print(f"PSNR {psnr} dB, mean square {np.mean(means**2 + stds**2)}", flush=True)

    def save(trained, dtype="float32"):
        save_mmdit(output, model, params | trained, dtype)

    trained = train_transformer(
        model,
        {name: params[name] for name in ("transformer", "text_encoder")},
        (means, stds, prompts),
        mesh,
        STEPS.value,
        constant(LEARNING_RATE.value, STEPS.value, ANNEALING.value),
        save,
        as_path(STATE.value, "--state"),
    )
    save(trained, "float16")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    app.run(main)
