"""Reads and writes the folders of Stable Diffusion 3, 3.5 and FLUX in diffusers' layout."""

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import jax.numpy as jnp
import numpy as np
from etils import epath

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models import text_encoders
from diffusionrl_jax.models.folders import hub, weights
from diffusionrl_jax.models.folders.networks import (
    INDEX,
    SCHEDULER,
    config_to_write,
    join_networks,
    read_networks,
    split_networks,
)
from diffusionrl_jax.models.folders.tensor_files import DIFFUSERS_STEM, open_networks, write_json
from diffusionrl_jax.models.mmdit.build import build_mmdit, parameter_template
from diffusionrl_jax.models.mmdit.configs import read_configs, read_tokenizers
from diffusionrl_jax.models.mmdit.model import MMDiT
from diffusionrl_jax.models.mmdit.positions import TABLE


def load_mmdit(
    path, dtype=jnp.float32, *, sharding: Callable | None = None, **options
) -> tuple[MMDiT, dict[str, Any]]:
    """Reads a folder in diffusers' layout, with safetensors weights.

    The headers of all files are checked before any weight is read. The weights are then read one
    tensor at a time, and those of a stack of blocks together.

    Args:
      path: a folder with model_index.json and what it names: local, `gs://`, or a Hugging Face hub
        id. Its weights may be sharded, or stored in half precision (`*.fp16.safetensors`).
      dtype: the dtype in which the networks compute.
      sharding: takes the tree of the parameters' shapes and returns the tree of their shardings.
        Each parameter is placed on its devices as it is read. With None all stay on the host.
      **options: `remat`, `text_tokens`, `embedded_guidance`, `convolution`, `attention`, `mesh`
        and `size` of `build_mmdit`.

    Returns:
      The model, and its float32 parameters {"transformer", "vae", "text_encoder"}, of which
      "text_encoder" holds those of each text encoder.

    Raises:
      FileNotFoundError: the folder or a file in it does not exist.
      UserError: a config is not supported, or the weights do not fit it; see `folders/weights.py`.
    """
    path = hub.locate(path)
    configs = read_configs(path)
    tokenizers = read_tokenizers(path, configs)
    has_table = "pos_embed_max_size" in configs["transformer"]
    table = _open_table(path, configs["transformer"]) if has_table else None
    model = build_mmdit(configs, tokenizers, table, dtype, **options)
    template = parameter_template(model)
    shardings = sharding and split_networks(sharding(template))
    kinds = model.pipeline.kinds
    trees = read_networks(path, split_networks(template), shardings, kinds)
    return model, join_networks({name: trees[name] for name in model.networks})


def _open_table(path: epath.Path, config: Mapping[str, Any]):
    """Returns where the table of places lies.

    Raises:
      UserError: it is not there, or has another shape than its config says.
    """
    folder = path / "transformer"
    table = open_networks({folder: DIFFUSERS_STEM})[folder.name].get(TABLE)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    expected = (1, config["pos_embed_max_size"] ** 2, width)
    if table is None or table.shape != expected:
        raise UserError(
            f"{folder}: the tensor {TABLE!r} has shape {table and table.shape}, and must have "
            f"{expected}, by config.json: use the folder's own files."
        )
    return table


def save_mmdit(
    path,
    model: MMDiT,
    params: Mapping[str, Any],
    dtype: str = "float16",
    base: epath.Path | None = None,
) -> None:
    """Writes a folder that PyTorch's `DiffusionPipeline.from_pretrained` opens.

    Args:
      path: the folder, local or remote. It is made where it does not exist, and files in it are
        overwritten.
      model: the model.
      params: the parameters, under "transformer", "vae" and "text_encoder".
      dtype: the dtype in which the weights are stored: "float32", "float16" or "bfloat16".
      base: the folder that the model is from, of which nothing more is taken.

    Raises:
      UserError: a weight is beyond the range of `dtype`, or there is no such dtype.
    """
    del base
    path = epath.Path(path)
    scheduler, version = model.configs[SCHEDULER], diffusers.__version__
    write_json(
        path / SCHEDULER / "scheduler_config.json", {**scheduler, "_diffusers_version": version}
    )
    trees, kinds = split_networks(params), model.pipeline.kinds
    for name in model.networks:
        kind = kinds[name]
        write_json(path / name / "config.json", config_to_write(kind, model.configs[name], dtype))
        state: dict[str, Any] = weights.to_pytorch(trees[name], rename=kind.rename)
        if name == model.denoiser_name and model.position_table is not None:
            state[TABLE] = np.asarray(model.position_table)
        weights.write_safetensors(path / name / f"{kind.stem}.safetensors", state, dtype)
    classes = {}
    for encoder, (name, kind) in model.pipeline.tokenizers.items():
        classes[name], classes[encoder] = [None, None], [None, None]
        if encoder in model.tokenizers:
            classes[name] = ["transformers", kind]
            text_encoders.save_tokenizer(path / name, model.tokenizers[encoder])
    # The index is written last, so that a folder that lacks files has none.
    write_json(
        path / INDEX,
        {
            **model.configs["pipeline"],
            "_diffusers_version": version,
            **{name: [None, None] for name in ("feature_extractor", "image_encoder")},
            SCHEDULER: ["diffusers", scheduler["_class_name"]],
            **classes,
            **{name: [kinds[name].library, kinds[name].name] for name in model.networks},
        },
    )
