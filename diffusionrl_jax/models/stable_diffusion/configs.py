"""Reads what a folder of Stable Diffusion says of itself, without its weights."""

from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath
from transformers import CLIPTokenizerFast

from diffusionrl_jax.data.files import read_json
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders.networks import (
    CLASSES,
    INDEX,
    NETWORKS,
    NETWORKS_XL,
    SCHEDULER,
    SECOND,
    check_part,
    part_class,
)
from diffusionrl_jax.models.schedulers import BETAS, check_class, check_scheduler
from diffusionrl_jax.models.stable_diffusion import supported
from diffusionrl_jax.models.stable_diffusion.amendments import (
    PIPELINE,
    PIPELINE_XL,
    amend_network,
    amend_scheduler,
)
from diffusionrl_jax.models.text_encoders import load_clip_tokenizer


def read_configs(path: epath.Path) -> dict[str, dict[str, Any]]:
    """Reads the configs of a folder's networks and scheduler, amended as PyTorch's pipeline does.

    Args:
      path: the folder, local or remote.

    Returns:
      The fields of each network and of "scheduler", and for XL those of "pipeline"; see
      `StableDiffusion.configs`.

    Raises:
      FileNotFoundError: a file does not exist.
      UserError: the folder is not supported; it names the file and the field.
    """
    if (path / SECOND).exists() and not (path / "text_encoder").exists():
        raise UserError(f"{path} only has XL's second text encoder: refiners are not supported.")
    pipeline, index = _read_pipeline(path)
    names = NETWORKS_XL if pipeline == PIPELINE_XL else NETWORKS
    configs = {name: _read_network(path, name, pipeline, index) for name in names}
    configs[SCHEDULER] = _read_scheduler(path, pipeline, index)
    if pipeline == PIPELINE_XL:
        configs["pipeline"] = index
    return configs


def _read_pipeline(path: epath.Path) -> tuple[str, dict[str, Any]]:
    """Returns the pipeline's class, and its model_index.json, which only XL has to have."""
    index = path / INDEX
    if not index.exists() and not (path / SECOND).exists():
        return PIPELINE, {}
    fields = read_json(index)
    default = PIPELINE_XL if (path / SECOND).exists() else PIPELINE
    is_xl = (fields.get("_class_name") or default) == PIPELINE_XL
    return (PIPELINE_XL if is_xl else PIPELINE), fields


def _read_network(
    path: epath.Path, name: str, pipeline: str, index: Mapping[str, Any]
) -> dict[str, Any]:
    file = path / name / "config.json"
    config = read_json(file)
    known = CLASSES[name][1]
    # A text encoder with a projection is one without it, too.
    check_part(path, name, config, index, (known, f"Flax{known}", f"{known}WithProjection"))
    amended = amend_network(name, config, pipeline)
    check = {"unet": supported.check_unet, "vae": supported.check_vae}.get(
        name, supported.check_text_encoder
    )
    check(amended, file)
    return amended


def _read_scheduler(path: epath.Path, pipeline: str, index: Mapping[str, Any]) -> dict[str, Any]:
    file = path / SCHEDULER / "scheduler_config.json"
    config = read_json(file)
    if not config:
        raise UserError(
            f"{file}: _class_name and beta_schedule are missing, as is all else: copy the file "
            "again."
        )
    own = config.get("_class_name")
    name = part_class(index, SCHEDULER) or own or "DDIMScheduler"
    for kind, source in ((name, path / INDEX), (own, file)):
        if kind is not None:
            check_class(kind, source)
    check_scheduler(config, file)
    return amend_scheduler(config, pipeline, name)


def warn_of_unknown_noise(path: epath.Path) -> None:
    """Warns where a folder's scheduler states nothing of its noise.

    Its class's defaults are then taken.
    """
    file = path / SCHEDULER / "scheduler_config.json"
    config = read_json(file)
    if all(config.get(field) is None for field in (*BETAS, "trained_betas")):
        logging.warning(
            "%s names no %s or %s: the model is taken to be trained on the defaults of PyTorch's "
            "class, which no published Stable Diffusion is.",
            *(file, ", ".join(BETAS[:-1]), BETAS[-1]),
        )


def read_tokenizers(path: epath.Path, configs: Mapping[str, Any]) -> dict[str, CLIPTokenizerFast]:
    """Reads the options "tokenizer", and for XL "tokenizer_2", of `build_stable_diffusion`.

    Args:
      path: the folder, local or remote.
      configs: the folder's configs, from `read_configs`.

    Raises:
      FileNotFoundError, UserError: as `text_encoders.load_clip_tokenizer`.
    """
    names = ("tokenizer", "tokenizer_2") if SECOND in configs else ("tokenizer",)
    return {name: load_clip_tokenizer(path / name) for name in names}
