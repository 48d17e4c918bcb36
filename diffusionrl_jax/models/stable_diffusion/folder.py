"""Reads and writes folders of Stable Diffusion in diffusers' layout."""

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import jax.numpy as jnp
from etils import epath

from diffusionrl_jax.models import text_encoders
from diffusionrl_jax.models.folders import hub, weights
from diffusionrl_jax.models.folders.companions import copy_companions
from diffusionrl_jax.models.folders.networks import (
    CLASSES,
    KINDS,
    RENAMES,
    SECOND,
    STEMS,
    config_to_write,
    join_networks,
    read_networks,
    split_networks,
)
from diffusionrl_jax.models.folders.tensor_files import write_json
from diffusionrl_jax.models.stable_diffusion.build import build_stable_diffusion, parameter_template
from diffusionrl_jax.models.stable_diffusion.configs import (
    read_configs,
    read_tokenizers,
    warn_of_unknown_noise,
)
from diffusionrl_jax.models.stable_diffusion.model import StableDiffusion


def load_stable_diffusion(
    path, dtype=jnp.float32, *, sharding: Callable | None = None, **options
) -> tuple[StableDiffusion, dict[str, Any]]:
    """Reads a folder in diffusers' layout, with safetensors weights.

    The headers of all files are checked before any weight is read. The weights are then read one
    tensor at a time.

    Args:
      path: a folder with tokenizer/, text_encoder/, unet/, vae/ and scheduler/ (for XL also
        tokenizer_2/, text_encoder_2/ and model_index.json): local, `gs://`, or a Hugging Face hub
        id. Its weights may be sharded, or stored in half precision (`*.fp16.safetensors`).
      dtype: the dtype in which the networks compute.
      sharding: takes the tree of the parameters' shapes and returns the tree of their shardings.
        Each parameter is placed on its devices as it is read. With None all stay on the host.
      **options: `remat`, `convolution`, `attention`, `mesh` and `size` of `StableDiffusion`.

    Returns:
      The model, and its float32 parameters {"unet", "vae", "text_encoder"}. For XL, "text_encoder"
      holds those of {"text_encoder", "text_encoder_2"}.

    Raises:
      FileNotFoundError: the folder or a file in it does not exist.
      UserError: a config is not supported, or the weights do not fit it; see `folders/weights.py`.
    """
    path = hub.locate(path)
    configs = read_configs(path)
    warn_of_unknown_noise(path)
    tokenizers = read_tokenizers(path, configs)
    model = build_stable_diffusion(configs, dtype=dtype, **tokenizers, **options)
    template = parameter_template(model)
    shardings = sharding and split_networks(sharding(template))
    return model, join_networks(read_networks(path, split_networks(template), shardings))


def save_stable_diffusion(
    path,
    model: StableDiffusion,
    params: Mapping[str, Any],
    dtype: str = "float16",
    base: epath.Path | None = None,
) -> None:
    """Writes a folder that PyTorch's `DiffusionPipeline.from_pretrained` opens.

    Args:
      path: the folder, local or remote. It is made where it does not exist, and files in it are
        overwritten.
      model: the model.
      params: the parameters, under "unet", "vae" and "text_encoder".
      dtype: the dtype in which the weights are stored: "float32", "float16" or "bfloat16".
      base: a folder whose safety checker is taken along, if there is one; see
        `models/folders/companions.py`.

    Raises:
      UserError: a weight is beyond the range of `dtype`, or there is no such dtype.
      FileNotFoundError, UserError: as `copy_companions`.
    """
    path = epath.Path(path)
    version = diffusers.__version__
    scheduler_class = model.scheduler_config.get("_class_name", "DDIMScheduler")
    tokenizers = {"tokenizer": model.tokenizer}
    pipeline: dict[str, Any] = {"_class_name": model.pipeline_name}
    if model.tokenizer_2 is None:
        pipeline["requires_safety_checker"] = False
    else:
        pipeline = {**model.configs["pipeline"], **pipeline}
        tokenizers["tokenizer_2"] = model.tokenizer_2
    absent = () if SECOND in model.networks else ("safety_checker",)
    copied = copy_companions(base, path, dtype) if base else {}
    write_json(
        path / "scheduler" / "scheduler_config.json",
        {
            **model.scheduler_config,
            "_class_name": scheduler_class,
            "_diffusers_version": version,
        },
    )
    trees = split_networks(params)
    for name in model.networks:
        config = config_to_write(KINDS[name], model.configs[name], dtype)
        write_json(path / name / "config.json", config)
        state = weights.to_pytorch(trees[name], rename=RENAMES[name])
        file = path / name / f"{STEMS[name]}.safetensors"
        weights.write_safetensors(file, state, dtype)
    for name, tokenizer in tokenizers.items():
        text_encoders.save_tokenizer(path / name, tokenizer)
    # The index is written last, so that a folder that lacks files has none.
    write_json(
        path / "model_index.json",
        {
            **pipeline,
            "_diffusers_version": version,
            **{name: [None, None] for name in ("feature_extractor", "image_encoder", *absent)},
            "scheduler": ["diffusers", scheduler_class],
            **{name: ["transformers", "CLIPTokenizer"] for name in tokenizers},
            **{name: list(CLASSES[name]) for name in model.networks},
            **copied,
        },
    )
