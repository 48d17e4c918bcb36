"""The configs of published transformers, for what is to be known of them without their weights.

Fields that only state a default are left out of the text encoders' and the VAE's.
"""

from typing import Any

from diffusionrl_jax.models.folders.networks import SCHEDULER, SECOND, THIRD
from diffusionrl_jax.models.folders.published import CLIP_TEXT, OPENCLIP_BIGG, VAE
from diffusionrl_jax.models.mmdit.configs import FLUX_DEFAULTS, JOINT_DEFAULTS

_VAE = VAE | {
    "force_upcast": True,
    "latent_channels": 16,
    "sample_size": 1024,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
_T5_XXL = {
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "feed_forward_proj": "gated-gelu",
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 32128,
}
_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}


def _joint(layers: int, heads: int, **fields) -> dict[str, Any]:
    """The configs of a Stable Diffusion 3 with so many blocks, and heads of 64 numbers."""
    transformer = {
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": 64,
        "caption_projection_dim": 64 * heads,
        "pos_embed_max_size": 192,
    }
    return {
        "transformer": JOINT_DEFAULTS | transformer | fields,
        "vae": _VAE | {"scaling_factor": 1.5305, "shift_factor": 0.0609},
        "text_encoder": CLIP_TEXT,
        SECOND: OPENCLIP_BIGG,
        THIRD: _T5_XXL,
        SCHEDULER: _SCHEDULER | {"shift": 3.0},
        "pipeline": {"_class_name": "StableDiffusion3Pipeline"},
    }


def _flux(is_guided: bool, **scheduler) -> dict[str, Any]:
    """The configs of a FLUX.1."""
    return {
        "transformer": FLUX_DEFAULTS | {"guidance_embeds": is_guided},
        "vae": _VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        "text_encoder": CLIP_TEXT,
        SECOND: _T5_XXL,
        SCHEDULER: _SCHEDULER | scheduler,
        "pipeline": {"_class_name": "FluxPipeline"},
    }


_NORMALISED = {"qk_norm": "rms_norm"}
_DYNAMIC = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
# By the id on the hub.
CONFIGS = {
    "stabilityai/stable-diffusion-3-medium-diffusers": _joint(24, 24),
    "stabilityai/stable-diffusion-3.5-medium": _joint(
        24, 24, pos_embed_max_size=384, dual_attention_layers=list(range(13)), **_NORMALISED
    ),
    "stabilityai/stable-diffusion-3.5-large": _joint(38, 38, **_NORMALISED),
    "black-forest-labs/FLUX.1-dev": _flux(True, **_DYNAMIC),
    "black-forest-labs/FLUX.1-schnell": _flux(False, shift=1.0),
}

_OF_JOINT = {
    "vae": 83_819_683,
    "text_encoder": 123_650_304,
    SECOND: 694_659_840,
    THIRD: 4_762_310_656,
}
_OF_FLUX = {"vae": 83_819_683, "text_encoder": 123_060_480, SECOND: 4_762_310_656}
# The numbers of parameters of each model's networks. The table of places is none.
PARAMETERS = {
    "stabilityai/stable-diffusion-3-medium-diffusers": {"transformer": 2_028_328_000, **_OF_JOINT},
    "stabilityai/stable-diffusion-3.5-medium": {"transformer": 2_243_171_520, **_OF_JOINT},
    "stabilityai/stable-diffusion-3.5-large": {"transformer": 8_056_627_520, **_OF_JOINT},
    "black-forest-labs/FLUX.1-dev": {"transformer": 11_901_408_320, **_OF_FLUX},
    "black-forest-labs/FLUX.1-schnell": {"transformer": 11_891_178_560, **_OF_FLUX},
}
