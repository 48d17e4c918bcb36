"""The tiny Stable Diffusion 3 of the emoji world: its architecture, and its first parameters."""

from collections.abc import Mapping
from typing import Any

import jax
from transformers import CLIPTokenizerFast

from diffusionrl_jax.emoji_world import emoji_model
from diffusionrl_jax.models.folders.networks import SCHEDULER, SECOND
from diffusionrl_jax.models.mmdit.build import init_mmdit
from diffusionrl_jax.models.mmdit.model import MMDiT
from diffusionrl_jax.models.stable_diffusion.folder import load_stable_diffusion

FIRST_WIDTH, SECOND_WIDTH = 64, 32  # Those of the text encoders.
TRANSFORMER = {
    "sample_size": emoji_model.UNET["sample_size"],
    "patch_size": 2,  # 1 has four times as many tokens, and takes three times as long.
    "in_channels": emoji_model.VAE["latent_channels"],
    "out_channels": emoji_model.VAE["latent_channels"],
    "num_layers": 5,
    "attention_head_dim": 24,
    "num_attention_heads": 4,
    "caption_projection_dim": 96,
    "joint_attention_dim": FIRST_WIDTH + SECOND_WIDTH,
    "pooled_projection_dim": FIRST_WIDTH + SECOND_WIDTH,
    "pos_embed_max_size": 4,
    "qk_norm": "rms_norm",
    "dual_attention_layers": [],
}
SCHEDULE = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    # Latents as small as these lose what they show as fast as their pixels.
    "shift": 1.0,
}


def configs(
    tokenizer: CLIPTokenizerFast, vae: Mapping[str, Any], scaling_factor: float
) -> dict[str, Mapping[str, Any]]:
    """Returns the configs of the folder's parts, as `MMDiT.configs`.

    The text encoders have one layer: the transformer is shown that layer's inputs, which are the
    words and their places, and nothing sums up the prompt but the projected states.

    Args:
      tokenizer: the tokenizer of both text encoders.
      vae: the config of the VAE.
      scaling_factor: the factor that gives the VAE's latents unit variance.
    """

    def text_encoder(width: int, activation: str) -> dict[str, Any]:
        return emoji_model.text_encoder_config(tokenizer) | {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": 1,
            "projection_dim": width,
            "hidden_act": activation,
        }

    return {
        "transformer": TRANSFORMER,
        # StableDiffusion3Pipeline adds the shift, and none is not a number to it.
        "vae": {**vae, "scaling_factor": scaling_factor, "shift_factor": 0.0},
        "text_encoder": text_encoder(FIRST_WIDTH, "quick_gelu"),
        SECOND: text_encoder(SECOND_WIDTH, "gelu"),
        SCHEDULER: SCHEDULE,
        "pipeline": {"_class_name": "StableDiffusion3Pipeline"},
    }


def init_flow_model(folder: str, rng: jax.Array) -> tuple[MMDiT, dict[str, Any]]:
    """Builds the model, with random parameters of the transformer and the text encoders.

    Args:
      folder: a folder of Stable Diffusion, whose VAE and tokenizer it has.
      rng: a PRNG key.

    Returns:
      The model, and its parameters as float32 host arrays.
    """
    source, params = load_stable_diffusion(folder)
    tokenizers = {name: source.tokenizer for name in ("text_encoder", SECOND)}
    chosen = configs(source.tokenizer, source.configs["vae"], source.scaling_factor)
    model, fresh = init_mmdit(chosen, rng, tokenizers)
    return model, fresh | {"vae": params["vae"]}
