"""Memory that Stable Diffusion's VAE takes to decode, by images at a time, on one v5e.

Nothing runs: the programs are compiled ahead of time with libtpu (`pip install libtpu`).

JAX_PLATFORMS=cpu python benchmarks/decoding.py
"""

import diffusers
import jax
import jax.numpy as jnp
from absl import app, flags
from diffusers import FlaxAutoencoderKL

from diffusionrl_jax.costs.compiled import chip, compile_cost
from diffusionrl_jax.costs.report import HEAD, row
from diffusionrl_jax.distributed.microbatch import map_microbatches, microbatch_count
from diffusionrl_jax.models.folders.published import CONFIGS
from diffusionrl_jax.models.stable_diffusion.model import StableDiffusion

PIXELS = flags.DEFINE_integer("pixels", 512, "Height and width of an image.")
IMAGES = flags.DEFINE_integer("images", 4, "Images on the chip.", 1)
CHUNKS = flags.DEFINE_list("chunks", ["1", "4"], "Of these, decoded at a time.")
DTYPE = flags.DEFINE_string("dtype", "bfloat16", "What the decoder computes in.")
TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "One chip of it is used.")

VAE = CONFIGS["sd2"]["vae"]  # 1.x and XL have the same layers.


def main(_):
    diffusers.utils.logging.set_verbosity_error()
    mesh = chip(TOPOLOGY.value)
    vae = FlaxAutoencoderKL.from_config(VAE, dtype=jnp.dtype(DTYPE.value))
    model = StableDiffusion(None, vae, None, None, {"vae": VAE}, mesh=mesh)
    params = jax.eval_shape(vae.init_weights, jax.random.key(0))
    images, side = IMAGES.value, PIXELS.value // 8
    latents = jax.ShapeDtypeStruct((images, 4, side, side), jnp.float32)
    print(
        f"{images} images of {PIXELS.value} px, {DTYPE.value}, {TOPOLOGY.value}, "
        f"jax {jax.__version__}\n\n{HEAD}",
        flush=True,
    )
    for chunk in map(int, CHUNKS.value):
        count = microbatch_count(images, chunk, mesh.size)

        def decode(params, latents, count=count):
            part = lambda latents: model.decode(params, latents)
            return map_microbatches(part, latents, count, mesh)

        print(row(f"{chunk} at a time", compile_cost(decode, mesh, params, latents)), flush=True)


if __name__ == "__main__":
    app.run(main)
