"""What PyTorch's pipelines amend, ignore and prefer as they open a folder, done here as they do it.

It follows `StableDiffusionPipeline` and `StableDiffusionXLPipeline` of diffusers 0.39 to 0.42 and
the CLIP models of transformers 4 and 5. docs/compatibility.md tells it in full:

- The pipeline's class in model_index.json decides which networks there are. Other folders beside
  them are passed over. The classes of the parts are those of model_index.json and of their configs.
- `StableDiffusionPipeline` takes a scheduler's steps_offset to be 1 and its clip_sample to be
  false, whatever the scheduler's config says, and a UNet's sample_size below 64 to be 64 if the
  UNet was saved before diffusers 0.9. `StableDiffusionXLPipeline` amends nothing.
- A field that is left out has the default of the PyTorch class (`DEFAULTS`, and `schedulers.py`). A
  field that is null is taken to be left out, also where PyTorch fails on it.
- Where a text encoder is stored with the other towers of a CLIP model, these are passed over
  (`networks.PASSED_OVER`), and of the whole model's config `text_config` is read.

A folder that is exported states all of this in its own configs.
"""

import re
from collections.abc import Mapping
from typing import Any

from diffusionrl_jax.models.folders.fields import without_nulls
from diffusionrl_jax.models.folders.networks import SECOND, TEXT_ENCODERS
from diffusionrl_jax.models.schedulers import with_defaults

PIPELINE = "StableDiffusionPipeline"
PIPELINE_XL = "StableDiffusionXLPipeline"

AMENDED_SCHEDULER = {PIPELINE: {"steps_offset": 1, "clip_sample": False}, PIPELINE_XL: {}}
# A UNet saved before this version of diffusers that states a smaller size was meant to state this.
SAMPLE_SIZE_SINCE = (0, 9)
SAMPLE_SIZE = 64

# The PyTorch classes' defaults of the fields that the networks are built from.
_CLIP = {
    "hidden_act": "quick_gelu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "max_position_embeddings": 77,
    "num_attention_heads": 8,
    "num_hidden_layers": 12,
    "projection_dim": 512,
    "vocab_size": 49408,
}
# Fields that transformers' configs have for other models, and that a text encoder has no use for.
NOT_OF_TEXT = ("dtype", "id2label", "label2id", "num_labels", "problem_type", "torch_dtype")
DEFAULTS: dict[str, dict[str, Any]] = {
    "unet": {
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 1280,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "flip_sin_to_cos": True,
        "in_channels": 4,
        "layers_per_block": 2,
        "out_channels": 4,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    },
    "vae": {
        "block_out_channels": [64],
        "down_block_types": ["DownEncoderBlock2D"],
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 32,
        "out_channels": 3,
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"],
    },
    "text_encoder": _CLIP,
    SECOND: _CLIP,
}


def amend_scheduler(config: Mapping[str, Any], pipeline: str, name: str) -> dict[str, Any]:
    """Returns a scheduler's config as the pipeline uses it, with every field its chain depends on.

    Args:
      config: the contents of scheduler_config.json.
      pipeline: the pipeline's class.
      name: the scheduler's class.
    """
    amended = with_defaults(config, name) | AMENDED_SCHEDULER[pipeline]
    return {**amended, "_class_name": name}


def amend_network(name: str, config: Mapping[str, Any], pipeline: str) -> dict[str, Any]:
    """Returns a network's config as the pipeline uses it, with every field that it is built from.

    Args:
      name: the network's name, a key of `DEFAULTS`.
      config: the contents of its config.json.
      pipeline: the pipeline's class.
    """
    if config.get("model_type") == "clip" and isinstance(config.get("text_config"), Mapping):
        config = {"model_type": "clip_text_model", **config["text_config"]}
    amended = {**DEFAULTS[name], **without_nulls(config)}
    if name in TEXT_ENCODERS:
        amended = {field: value for field, value in amended.items() if field not in NOT_OF_TEXT}
    if name == "unet" and pipeline == PIPELINE and _is_before_sample_size(amended):
        amended["sample_size"] = SAMPLE_SIZE
    return amended


def _is_before_sample_size(config: Mapping[str, Any]) -> bool:
    """Returns whether a UNet's config dates from when all stated a sample_size of 32."""
    saved = re.match(r"(\d+)\.(\d+)", str(config.get("_diffusers_version")))
    size = config.get("sample_size")
    is_small = type(size) is int and size < SAMPLE_SIZE
    return bool(is_small and saved and (int(saved[1]), int(saved[2])) < SAMPLE_SIZE_SINCE)
