"""Builds a Stable Diffusion without its weights, of a folder or of a published checkpoint."""

from typing import Any

import jax.numpy as jnp

from diffusionrl_jax.data.files import resolve
from diffusionrl_jax.models import any_tokenizers
from diffusionrl_jax.models.folders import published
from diffusionrl_jax.models.folders.networks import SECOND
from diffusionrl_jax.models.stable_diffusion.build import build_stable_diffusion, parameter_template
from diffusionrl_jax.models.stable_diffusion.configs import read_configs, read_tokenizers
from diffusionrl_jax.models.stable_diffusion.model import StableDiffusion


def stable_diffusion_shapes(
    name: str, dtype=jnp.float32, **options
) -> tuple[StableDiffusion, dict[str, Any]]:
    """Builds the networks that `config.model` names.

    Args:
      name: a folder that is here, or a published model's hub id or short name.
      dtype, **options: as in `build_stable_diffusion`.

    Returns:
      The model, and the shapes of its parameters, as `load_stable_diffusion` returns them.

    Raises:
      UserError, FileNotFoundError: as `load_stable_diffusion`, but for the weights.
    """
    folder = resolve(name, "config.model")
    if folder.exists():
        configs = read_configs(folder)
        tokenizers = read_tokenizers(folder, configs)
    else:
        short = published.short_name(name)
        assert short is not None  # `model_shapes` has looked.
        configs = published.CONFIGS[short]
        tokenizers = {"tokenizer": any_tokenizers.clip_tokenizer()}
        if SECOND in configs:
            tokenizers["tokenizer_2"] = any_tokenizers.clip_tokenizer()
    model = build_stable_diffusion(configs, dtype=dtype, **tokenizers, **options)
    return model, parameter_template(model)
