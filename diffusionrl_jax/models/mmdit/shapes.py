"""Builds a transformer's networks without their weights, of a folder or of a published model."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.data.files import resolve
from diffusionrl_jax.models import any_tokenizers
from diffusionrl_jax.models.mmdit import published
from diffusionrl_jax.models.mmdit.build import build_mmdit, parameter_template
from diffusionrl_jax.models.mmdit.configs import read_configs, read_tokenizers
from diffusionrl_jax.models.mmdit.model import MMDiT
from diffusionrl_jax.models.mmdit.pipelines import PIPELINES, T5


def mmdit_shapes(name: str, dtype=jnp.float32, **options) -> tuple[MMDiT, dict[str, Any]]:
    """Builds the networks that `config.model` names. Their table of places is of zeros.

    Args:
      name: a folder that is here, or a published model's hub id.
      dtype, **options: as in `build_mmdit`.

    Returns:
      The model, and the shapes of its parameters, as `load_mmdit` returns them.

    Raises:
      UserError, FileNotFoundError: as `load_mmdit`, but for the weights.
    """
    folder = resolve(name, "config.model")
    if folder.exists():
        configs = read_configs(folder)
        tokenizers = read_tokenizers(folder, configs)
    else:
        configs = published.CONFIGS[name]
        pipeline = PIPELINES[configs["pipeline"]["_class_name"]]
        tokenizers = {
            encoder: any_tokenizers.t5_tokenizer()
            if pipeline.kinds[encoder].name == T5
            else any_tokenizers.clip_tokenizer()
            for encoder in pipeline.tokenizers
        }
    fields, table = configs["transformer"], None
    if "pos_embed_max_size" in fields:
        width = fields["num_attention_heads"] * fields["attention_head_dim"]
        # It takes the memory of one number.
        table = np.broadcast_to(np.float32(0), (1, fields["pos_embed_max_size"] ** 2, width))
    model = build_mmdit(configs, tokenizers, table, dtype, **options)
    return model, parameter_template(model)
