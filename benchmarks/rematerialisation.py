"""Memory and operations of the UNet's gradient under each rematerialisation policy, on one v5e.

Nothing runs: the programs are compiled ahead of time with libtpu (`pip install libtpu`).

JAX_PLATFORMS=cpu python benchmarks/rematerialisation.py
"""

import diffusers
import jax
import jax.numpy as jnp
from absl import app, flags
from diffusers import FlaxUNet2DConditionModel

from diffusionrl_jax.costs.compiled import chip, compile_cost
from diffusionrl_jax.costs.report import HEAD, row
from diffusionrl_jax.models.attention import ATTENTION
from diffusionrl_jax.models.rematerialisation import POLICIES
from diffusionrl_jax.models.stable_diffusion.interceptors import interception

HEAD_SIZE, TEXT_TOKENS = 64, 77
WIDTHS = (320, 640, 1280, 1280)

FULL = flags.DEFINE_bool("full", False, "Stable Diffusion 2's UNet; minutes for each policy.")
LEVELS = flags.DEFINE_integer("levels", 2, "How many of its 4 levels.", 1, 4)
LAYERS = flags.DEFINE_integer("layers", 1, "Blocks of a level; Stable Diffusion has 2.", 1)
LATENT = flags.DEFINE_integer("latent", 64, "Height and width of a latent; an eighth of the image.")
IMAGES = flags.DEFINE_integer("images", 1, "Images on the chip.", 1)
CHOSEN = flags.DEFINE_list("policies", list(POLICIES), "Of rematerialisation.")
ATTENTIONS = flags.DEFINE_list("attentions", ["auto"], f"Of {ATTENTION}.")
TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "One chip of it is used.")


def unet_config(levels: int, layers: int, latent: int) -> dict:
    """The first levels of Stable Diffusion 2's UNet; the last one has no attention, as there."""
    widths = WIDTHS[:levels]
    return {
        "attention_head_dim": [width // HEAD_SIZE for width in widths],
        "block_out_channels": list(widths),
        "cross_attention_dim": 1024,
        "down_block_types": ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1),
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": layers,
        "sample_size": latent,
        "use_linear_projection": True,
    }


def main(_):
    diffusers.utils.logging.set_verbosity_error()
    levels, layers = (len(WIDTHS), 2) if FULL.value else (LEVELS.value, LAYERS.value)
    config = unet_config(levels, layers, LATENT.value)
    unet = FlaxUNet2DConditionModel.from_config(config, dtype=jnp.bfloat16)
    mesh = chip(TOPOLOGY.value)
    params = jax.eval_shape(unet.init_weights, jax.random.key(0))
    count = IMAGES.value
    latents = jax.ShapeDtypeStruct((count, 4, LATENT.value, LATENT.value), jnp.float32)
    timesteps = jax.ShapeDtypeStruct((count,), jnp.int32)
    text = jax.ShapeDtypeStruct((count, TEXT_TOKENS, 1024), jnp.bfloat16)
    print(
        f"UNet {WIDTHS[:levels]}, {layers} layers a level, latents {LATENT.value}x{LATENT.value}, "
        f"{count} images, bfloat16, {TOPOLOGY.value}, jax {jax.__version__}\n\n{HEAD}",
        flush=True,
    )
    for attention in ATTENTIONS.value:
        for policy in CHOSEN.value:

            def loss(params, latents, timesteps, text, policy=policy, attention=attention):
                with interception(remat=policy, attention=attention, mesh=mesh):
                    output = unet.apply({"params": params}, latents, timesteps, text).sample
                return jnp.mean(jnp.square(output.astype(jnp.float32)))

            cost = compile_cost(jax.grad(loss), mesh, params, latents, timesteps, text)
            print(row(f"{attention}, {policy}", cost), flush=True)


if __name__ == "__main__":
    app.run(main)
