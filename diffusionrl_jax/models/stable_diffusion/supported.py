"""Which diffusers and CLIP configurations the Flax modules compute as PyTorch does.

diffusers' Flax classes drop every field they do not know without a word and then compute something
else than the PyTorch model. These checks refuse such configurations before any weight is read.
"""

from collections.abc import Mapping
from typing import Any

from diffusionrl_jax.mistakes import UserError

Config = Mapping[str, Any]

# Field -> the values for which Flax computes what PyTorch computes. None stands for absent too.
UNET_FIELDS = {
    "act_fn": ("silu", None),
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default", None),
    "center_input_sample": (False, None),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False, None),
    "conv_in_kernel": (3, None),
    "conv_out_kernel": (3, None),
    "cross_attention_norm": (None,),
    "downsample_padding": (1, None),
    "dual_cross_attention": (False, None),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "freq_shift": (0, None),
    "mid_block_only_cross_attention": (False, None),
    "mid_block_scale_factor": (1, None),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5, None),
    "norm_num_groups": (32,),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False, None),
    "resnet_out_scale_factor": (1.0, None),
    "resnet_skip_time_act": (False, None),
    "resnet_time_scale_shift": ("default", None),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional", None),
    "timestep_post_act": (None,),
}
VAE_FIELDS = {
    "act_fn": ("silu", None),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True, None),
    "shift_factor": (None,),
    "use_post_quant_conv": (True, None),
    "use_quant_conv": (True, None),
}
UNET_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
VAE_BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
}
# Left out of a config, these would fall back to defaults that differ between the libraries.
UNET_REQUIRED = (
    "attention_head_dim",
    "block_out_channels",
    "cross_attention_dim",
    "in_channels",
    "layers_per_block",
    "out_channels",
    "sample_size",
    *UNET_BLOCKS,
)
TEXT_FIELDS = {
    "hidden_act": ("quick_gelu", "gelu", None),
    "model_type": ("clip_text_model", None),
    "use_attention_mask": (False, None),
}
TEXT_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)
# Original size, crop, target size: two numbers each.
TIME_IDS = 6
VAE_REQUIRED = ("block_out_channels", "latent_channels", "layers_per_block", *VAE_BLOCKS)
DEFAULTS = {"mid_block_type": "UNetMidBlock2DCrossAttn", "norm_num_groups": 32}


def check_unet(config: Config) -> None:
    """Raises a UserError, naming the field, if FlaxUNet2DConditionModel computes it wrongly."""
    _check(config, "UNet", UNET_REQUIRED, UNET_FIELDS, UNET_BLOCKS)
    odd = [channels for channels in config["block_out_channels"] if channels % 32]
    if odd:
        raise UserError(
            f"UNet config: block_out_channels has {odd}, which the 32 normalisation groups do not "
            "divide; use multiples of 32."
        )
    heads = config["attention_head_dim"]
    channels = config["block_out_channels"]
    heads = [heads] * len(channels) if isinstance(heads, int) else heads
    if len(heads) != len(channels) or any(c % h for c, h in zip(channels, heads, strict=True)):
        raise UserError(
            f"UNet config: attention_head_dim (in spite of its name, the number of heads) is "
            f"{config['attention_head_dim']}, which does not divide block_out_channels {channels}."
        )
    depths = config.get("transformer_layers_per_block", 1)
    depths = [depths] * len(channels) if isinstance(depths, int) else depths
    if len(depths) != len(channels) or not all(isinstance(depth, int) for depth in depths):
        raise UserError(
            f"UNet config: transformer_layers_per_block is {depths}; only one whole number, or one "
            f"for each of block_out_channels {channels}, is supported."
        )
    for field in ("cross_attention_dim", "layers_per_block", "sample_size"):
        if not isinstance(config[field], int):
            raise UserError(
                f"UNet config: {field} is {config[field]!r}; only one whole number is supported."
            )


def check_vae(config: Config) -> None:
    """Raises a UserError, naming the field, if FlaxAutoencoderKL computes it wrongly."""
    _check(config, "VAE", VAE_REQUIRED, VAE_FIELDS, VAE_BLOCKS)
    groups = config.get("norm_num_groups", 32)
    if any(channels % groups for channels in config["block_out_channels"]):
        raise UserError(
            f"VAE config: norm_num_groups {groups} does not divide block_out_channels "
            f"{config['block_out_channels']}."
        )


def check_text_encoder(config: Config, name: str) -> None:
    """Raises a UserError, naming the field, if transformers' Flax CLIP computes it wrongly."""
    _check(config, name, TEXT_REQUIRED, TEXT_FIELDS, {})


def check_together(unet: Config, vae: Config, text: Config, text_2: Config | None = None) -> None:
    """Raises a UserError if the networks do not fit each other; `text_2` is of XL."""
    if unet["in_channels"] != vae["latent_channels"]:
        raise UserError(
            f"The UNet takes {unet['in_channels']} channels and the VAE makes "
            f"{vae['latent_channels']}: inpainting and other image-conditioned models are not "
            "supported, use a text-to-image one."
        )
    if unet["out_channels"] != vae["latent_channels"]:
        raise UserError(
            f"The UNet makes {unet['out_channels']} channels, the VAE {vae['latent_channels']}."
        )
    width = text["hidden_size"] + (text_2["hidden_size"] if text_2 else 0)
    if unet["cross_attention_dim"] != width:
        raise UserError(
            f"The UNet attends to text embeddings {unet['cross_attention_dim']} wide, but the text "
            f"{'encoders make' if text_2 else 'encoder makes'} {width}."
        )
    kind = unet.get("addition_embed_type")
    if kind != ("text_time" if text_2 else None):
        raise UserError(
            f"UNet config: addition_embed_type is {kind!r}, but the folder has "
            f"{'two text encoders' if text_2 else 'one text encoder'}: it is 'text_time' in XL, "
            "which has two, and absent elsewhere."
        )
    if text_2:
        size = unet.get("addition_time_embed_dim") or 0
        width, pooled = unet.get("projection_class_embeddings_input_dim"), text_2["projection_dim"]
        if not size or width != TIME_IDS * size + pooled:
            raise UserError(
                f"UNet config: projection_class_embeddings_input_dim is {width}, but "
                f"{TIME_IDS} time ids of addition_time_embed_dim {size} and a pooled text of "
                f"{pooled} make {TIME_IDS * size + pooled}: only XL base models are supported."
            )


def _check(config, model, required, fields, blocks) -> None:
    absent = [field for field in required if config.get(field) is None]
    if absent:
        raise UserError(f"{model} config: {', '.join(absent)} missing; add them to config.json.")
    for field, allowed in fields.items():
        value = config.get(field, DEFAULTS.get(field))
        if value not in allowed:
            values = " or ".join(repr(value) for value in allowed if value is not None)
            raise UserError(
                f"{model} config: {field} is {value!r}, but the Flax {model} only computes "
                f"{values or 'models without it'} correctly."
            )
    for field, known in blocks.items():
        unknown = sorted(set(config[field]) - set(known))
        if unknown:
            raise UserError(f"{model} config: {field} has {unknown}; supported are {list(known)}.")
        if len(config[field]) != len(config["block_out_channels"]):
            raise UserError(
                f"{model} config: {field} and block_out_channels have different lengths."
            )
