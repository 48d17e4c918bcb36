"""Checks that the Flax modules compute a diffusers or CLIP configuration as PyTorch does.

diffusers' Flax classes drop every field that they do not know without a word, and then compute
something else than the PyTorch model. These checks refuse such configurations before any weight is
read.
"""

from collections.abc import Mapping
from typing import Any

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders.fields import (
    ABOVE_ZERO,
    FLAG,
    LAYERS,
    MOST_LAYERS,
    NUMBER,
    TEXTS,
    WHOLE,
    WHOLE_OR_WHOLES,
    WHOLE_OR_ZERO,
    WHOLES,
    check_fields,
    is_whole,
)

Config = Mapping[str, Any]

# For each field, the values for which Flax computes what PyTorch computes. None stands for an
# absent field too.
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
    "in_channels": (3, None),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True, None),
    "out_channels": (3, None),
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
# Fields that would fall back, where they are left out, to defaults that differ between libraries.
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
# What each field may hold.
UNET_KINDS = {
    "addition_time_embed_dim": WHOLE,
    "attention_head_dim": WHOLE_OR_WHOLES,
    "block_out_channels": WHOLES,
    "cross_attention_dim": WHOLE,
    "flip_sin_to_cos": FLAG,
    "in_channels": WHOLE,
    "layers_per_block": LAYERS,
    "out_channels": WHOLE,
    "projection_class_embeddings_input_dim": WHOLE,
    "sample_size": WHOLE,
    "upcast_attention": FLAG,
    "use_linear_projection": FLAG,
    **dict.fromkeys(UNET_BLOCKS, TEXTS),
}
VAE_KINDS = {
    "block_out_channels": WHOLES,
    "force_upcast": FLAG,
    "latent_channels": WHOLE,
    "layers_per_block": LAYERS,
    "norm_num_groups": WHOLE,
    "scaling_factor": ABOVE_ZERO,
    **dict.fromkeys(VAE_BLOCKS, TEXTS),
}
# Fields that a VAE may have where the pipeline is one of flow matching.
FLOW_VAE_KINDS = {"shift_factor": NUMBER, "use_post_quant_conv": FLAG, "use_quant_conv": FLAG}
TEXT_KINDS = {
    **dict.fromkeys(
        (
            "hidden_size",
            "intermediate_size",
            "max_position_embeddings",
            "num_attention_heads",
            "projection_dim",
            "vocab_size",
        ),
        WHOLE,
    ),
    "eos_token_id": WHOLE_OR_ZERO,
    "num_hidden_layers": LAYERS,
    "layer_norm_eps": ABOVE_ZERO,
}
# XL's time ids are the original size, the crop and the target size, two numbers each.
TIME_IDS = 6
VAE_REQUIRED = ("block_out_channels", "latent_channels", "layers_per_block", *VAE_BLOCKS)
DEFAULTS = {"mid_block_type": "UNetMidBlock2DCrossAttn", "norm_num_groups": 32}


def check_unet(config: Config, source: object = "UNet config") -> None:
    """Refuses a UNet that FlaxUNet2DConditionModel would compute wrongly, or not at all.

    Args:
      config: the contents of its config.json.
      source: that file, for messages.

    Raises:
      UserError: the UNet is not supported; it names the source and the field.
    """
    _check(config, source, UNET_REQUIRED, UNET_KINDS, UNET_FIELDS, UNET_BLOCKS)
    channels = config["block_out_channels"]
    odd = [count for count in channels if count % 32]
    if odd:
        raise UserError(
            f"{source}: block_out_channels has {odd}, which the 32 normalisation groups do not "
            "divide; use multiples of 32."
        )
    heads = config["attention_head_dim"]
    heads = [heads] * len(channels) if isinstance(heads, int) else heads
    if len(heads) != len(channels) or any(c % h for c, h in zip(channels, heads, strict=True)):
        raise UserError(
            f"{source}: attention_head_dim (in spite of its name, the number of heads) is "
            f"{config['attention_head_dim']}, which does not divide block_out_channels {channels}."
        )
    depths = config.get("transformer_layers_per_block", 1)
    depths = [depths] * len(channels) if is_whole(depths, 0) else depths
    is_list = isinstance(depths, list | tuple) and len(depths) == len(channels)
    if not is_list or not all(is_whole(depth, 0) and depth <= MOST_LAYERS for depth in depths):
        raise UserError(
            f"{source}: transformer_layers_per_block is {depths}; only one whole number, or one "
            f"for each of block_out_channels {channels}, is supported."
        )


def check_vae(config: Config, source: object = "VAE config", is_of_flow: bool = False) -> None:
    """Refuses a VAE that FlaxAutoencoderKL would compute wrongly; see `check_unet`.

    Args:
      config, source: as in `check_unet`.
      is_of_flow: whether the pipeline shifts the latents, and knows VAEs without convolutions
        beside them.
    """
    kinds, allowed = VAE_KINDS, VAE_FIELDS
    if is_of_flow:
        kinds = VAE_KINDS | FLOW_VAE_KINDS
        allowed = {name: values for name, values in allowed.items() if name not in FLOW_VAE_KINDS}
    _check(config, source, VAE_REQUIRED, kinds, allowed, VAE_BLOCKS)
    groups = config.get("norm_num_groups", 32)
    if any(channels % groups for channels in config["block_out_channels"]):
        raise UserError(
            f"{source}: norm_num_groups {groups} does not divide block_out_channels "
            f"{config['block_out_channels']}."
        )


def check_text_encoder(config: Config, source: object) -> None:
    """Refuses a text encoder that Flax CLIP would compute wrongly; see `check_unet`."""
    _check(config, source, TEXT_REQUIRED, TEXT_KINDS, TEXT_FIELDS, {})
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if width % heads:
        raise UserError(
            f"{source}: num_attention_heads is {heads}, which does not divide hidden_size {width}."
        )


def check_together(unet: Config, vae: Config, text: Config, text_2: Config | None = None) -> None:
    """Refuses networks that do not fit each other.

    Args:
      unet, vae, text: the contents of the networks' config.json.
      text_2: that of XL's second text encoder.

    Raises:
      UserError: two of them do not fit each other; it names both and the field.
    """
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


def _check(config, source, required, kinds, fields, blocks) -> None:
    """Refuses a config that lacks a field, or has one whose value is not supported.

    Args:
      config: the contents of a config.json.
      source: that file, for messages.
      required: the fields that must be there.
      kinds: what each field may hold.
      fields: for each field, the values for which Flax computes what PyTorch computes.
      blocks: for each list of blocks, the classes that it may name.
    """
    absent = [field for field in required if config.get(field) is None]
    if absent:
        raise UserError(f"{source}: {', '.join(absent)} missing; add them to config.json.")
    check_fields(config, kinds, source)
    for field, allowed in fields.items():
        value = config.get(field, DEFAULTS.get(field))
        if value not in allowed:
            values = " or ".join(repr(value) for value in allowed if value is not None)
            raise UserError(
                f"{source}: {field} is {value!r}, but only {values or 'models without it'} are "
                "computed here as in PyTorch."
            )
    for field, known in blocks.items():
        unknown = sorted(set(config[field]) - set(known))
        if unknown:
            raise UserError(f"{source}: {field} has {unknown}; supported are {list(known)}.")
        if len(config[field]) != len(config["block_out_channels"]):
            raise UserError(f"{source}: {field} and block_out_channels have different lengths.")
