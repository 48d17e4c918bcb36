"""Reads what a folder of a transformer says of itself, without its weights."""

from collections.abc import Mapping
from typing import Any

from etils import epath
from transformers import PreTrainedTokenizerBase

from diffusionrl_jax.data.files import read_json
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models import t5, text_encoders
from diffusionrl_jax.models.flow_schedulers import FLOW_SCHEDULERS, check_flow_scheduler
from diffusionrl_jax.models.folders import fields
from diffusionrl_jax.models.folders.networks import INDEX, SCHEDULER, check_part, part_class
from diffusionrl_jax.models.mmdit.pipelines import FLUX, PIPELINES, T5, Pipeline
from diffusionrl_jax.models.stable_diffusion import supported
from diffusionrl_jax.models.stable_diffusion.amendments import amend_network

# The PyTorch classes' defaults of the fields that they are built from.
JOINT_DEFAULTS = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 18,
    "attention_head_dim": 64,
    "num_attention_heads": 18,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1152,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 96,
    "dual_attention_layers": [],
}
FLUX_DEFAULTS = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": False,
    "axes_dims_rope": [16, 56, 56],
}
KINDS = {
    **{name: fields.WHOLE for name in (*JOINT_DEFAULTS, *FLUX_DEFAULTS, "out_channels")},
    "num_layers": fields.LAYERS,
    "num_single_layers": fields.LAYERS,
    "dual_attention_layers": fields.WHOLES_OR_NONE,
    "axes_dims_rope": fields.WHOLES,
    "guidance_embeds": fields.FLAG,
    "qk_norm": fields.TEXT,
}
PART = fields.Kind("a list of a library and a class", lambda value: isinstance(value, list))


def read_configs(path: epath.Path) -> dict[str, dict[str, Any]]:
    """Reads the configs of a folder's networks and scheduler.

    Args:
      path: the folder, local or remote.

    Returns:
      The fields of each network and of "scheduler", and under "pipeline" those of model_index.json.

    Raises:
      FileNotFoundError: a file does not exist.
      UserError: the folder is not supported; it names the file and the field.
    """
    index = read_json(path / INDEX)
    pipeline = PIPELINES[index["_class_name"]]
    fields.check_fields(index, dict.fromkeys(pipeline.optional, PART), path / INDEX)
    names = [
        name
        for name in pipeline.kinds
        if name not in pipeline.optional or any(index.get(name) or ())
    ]
    configs = {name: _read_network(path, name, pipeline, index) for name in names}
    _check_together(pipeline, configs, path)
    return {**configs, SCHEDULER: _read_scheduler(path, index), "pipeline": index}


def _read_network(path: epath.Path, name: str, pipeline: Pipeline, index: Mapping[str, Any]):
    file = path / name / "config.json"
    config, known = read_json(file), pipeline.kinds[name].name
    check_part(path, name, config, index, (known,))
    if name == "transformer":
        is_flux = known == FLUX
        config = (FLUX_DEFAULTS if is_flux else JOINT_DEFAULTS) | fields.without_nulls(config)
        fields.check_fields(config, KINDS, file)
        (_check_flux_transformer if is_flux else _check_joint_transformer)(config, file)
    elif known == T5:
        config = t5.complete_config(config, file)
    else:
        config = amend_network(name, config, index["_class_name"])
        if name == "vae":
            supported.check_vae(config, file, is_of_flow=True)
        else:
            supported.check_text_encoder(config, file)
    return config


def _read_scheduler(path: epath.Path, index: Mapping[str, Any]) -> dict[str, Any]:
    file = path / SCHEDULER / "scheduler_config.json"
    config = read_json(file)
    name = part_class(index, SCHEDULER) or config.get("_class_name") or FLOW_SCHEDULERS[0]
    if name not in FLOW_SCHEDULERS:
        raise UserError(
            f"{path / INDEX}: the scheduler {name} is not supported, since it is none of flow "
            f"matching: use a model of {', '.join(FLOW_SCHEDULERS)}."
        )
    check_flow_scheduler(config, file)
    return {**config, "_class_name": name}


def _check_joint_transformer(config: Mapping[str, Any], file: epath.Path) -> None:
    """Refuses a transformer of Stable Diffusion 3 that would be computed wrongly.

    Args:
      config: the contents of its config.json, with all of `JOINT_DEFAULTS`.
      file: that file, for messages.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    if config["caption_projection_dim"] != width:
        raise UserError(
            f"{file}: caption_projection_dim is {config['caption_projection_dim']}, and must be "
            f"num_attention_heads times attention_head_dim, {width}."
        )
    if width % 4:
        raise UserError(f"{file}: the width is {width}, and must be a multiple of 4.")
    if config.get("qk_norm") not in (None, "rms_norm"):
        raise UserError(
            f"{file}: qk_norm is {config['qk_norm']!r}, and only 'rms_norm' or none is supported."
        )
    if config["in_channels"] != config["out_channels"]:
        raise UserError(
            f"{file}: in_channels is {config['in_channels']} and out_channels "
            f"{config['out_channels']}: only text-to-image models, in which they are equal, are "
            "supported."
        )


def _check_flux_transformer(config: Mapping[str, Any], file: epath.Path) -> None:
    """Refuses a transformer of FLUX that would be computed wrongly; see the one above."""
    if config["patch_size"] != 1:
        raise UserError(f"{file}: patch_size is {config['patch_size']}, and must be 1.")
    size, axes = config["attention_head_dim"], config["axes_dims_rope"]
    if len(axes) != 3 or sum(axes) != size or any(axis % 2 for axis in axes):
        raise UserError(
            f"{file}: axes_dims_rope is {axes}, and must be three even numbers that make up "
            f"attention_head_dim, {size}."
        )
    if config.get("out_channels", config["in_channels"]) != config["in_channels"]:
        raise UserError(
            f"{file}: in_channels is {config['in_channels']} and out_channels "
            f"{config['out_channels']}: models that are shown a picture (Fill, Depth, Canny) are "
            "not supported, use FLUX.1 dev or schnell."
        )


def _check_together(
    pipeline: Pipeline, configs: Mapping[str, Mapping[str, Any]], path: epath.Path
) -> None:
    """Refuses networks that do not fit each other."""
    transformer, vae = configs["transformer"], configs["vae"]
    channels = pipeline.packed_channels(vae["latent_channels"])
    if transformer["in_channels"] != channels:
        raise UserError(
            f"{path}: the transformer has in_channels={transformer['in_channels']}, and the "
            f"latents of the VAE have {channels}: models that are shown a picture are not "
            "supported, use a text-to-image one."
        )
    clips = [configs[name] for name in pipeline.tokenizers if pipeline.kinds[name].name != T5]
    field = "projection_dim" if pipeline.reads_clip_states else "hidden_size"
    pooled = sum(config[field] for config in clips)
    side_by_side = sum(config["hidden_size"] for config in clips)
    width = transformer["joint_attention_dim"]
    of_t5 = [
        configs[name]["d_model"]
        for name in pipeline.tokenizers
        if pipeline.kinds[name].name == T5 and name in configs
    ]
    if of_t5 not in ([], [width]) or (pipeline.reads_clip_states and side_by_side > width):
        raise UserError(
            f"{path}: the transformer reads texts joint_attention_dim={width} wide, but T5 makes "
            f"{of_t5} and CLIP's text encoders {side_by_side}: use the folder's own files."
        )
    if transformer["pooled_projection_dim"] != pooled:
        raise UserError(
            f"{path}: the transformer has pooled_projection_dim="
            f"{transformer['pooled_projection_dim']}, but its CLIP text encoders make "
            f"{pooled}: use the folder's own files."
        )


def read_tokenizers(
    path: epath.Path, configs: Mapping[str, Any]
) -> dict[str, PreTrainedTokenizerBase]:
    """Reads the tokenizer of each text encoder, by the text encoder's name.

    Args:
      path: the folder, local or remote.
      configs: the folder's configs, from `read_configs`.

    Raises:
      FileNotFoundError, UserError: as `text_encoders.load_tokenizer`.
    """
    pipeline = PIPELINES[configs["pipeline"]["_class_name"]]
    return {
        encoder: text_encoders.load_t5_tokenizer(path / name)
        if pipeline.kinds[encoder].name == T5
        else text_encoders.load_clip_tokenizer(path / name)
        for encoder, (name, _) in pipeline.tokenizers.items()
        if encoder in configs
    }
