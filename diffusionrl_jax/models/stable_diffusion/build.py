"""Builds the networks of Stable Diffusion from their configs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from diffusers import (
    FlaxAutoencoderKL,  # pyright: ignore[reportPrivateImportUsage]
    FlaxUNet2DConditionModel,  # pyright: ignore[reportPrivateImportUsage]
)
from transformers import CLIPTextConfig, CLIPTokenizerFast
from transformers.models.clip.modeling_flax_clip import (
    FlaxCLIPTextModelWithProjectionModule,
    FlaxCLIPTextModule,
)

from diffusionrl_jax.models import text_encoders
from diffusionrl_jax.models.folders.networks import (
    SECOND,
    join_networks,
)
from diffusionrl_jax.models.parameters import random_parameters
from diffusionrl_jax.models.stable_diffusion import supported as checks
from diffusionrl_jax.models.stable_diffusion.autoencoder import vae_template
from diffusionrl_jax.models.stable_diffusion.model import StableDiffusion, latent_size
from diffusionrl_jax.models.towers.clip import text_template


def build_stable_diffusion(
    configs: Mapping[str, Mapping[str, Any]],
    tokenizer: CLIPTokenizerFast,
    dtype=jnp.float32,
    *,
    tokenizer_2: CLIPTokenizerFast | None = None,
    **options,
) -> StableDiffusion:
    """Builds the networks that the configs describe.

    Args:
      configs: as `StableDiffusion.configs`. The UNet's `attention_head_dim` is, in spite of its
        name, the number of heads, in PyTorch as in Flax.
      tokenizer: a CLIP tokenizer with `model_max_length` set.
      dtype: the dtype in which the networks compute. Their parameters are float32 all the same.
      tokenizer_2: the tokenizer of XL's second text encoder.
      **options: `remat`, `convolution`, `attention`, `mesh` and `size` of `StableDiffusion`.

    Raises:
      UserError: a size does not fit the networks, Flax would compute a config wrongly, the networks
        do not fit each other, or a tokenizer does not fit its text encoder.
    """
    checks.check_unet(configs["unet"])
    checks.check_vae(configs["vae"])
    tokenizers = {"text_encoder": tokenizer}
    if SECOND in configs:
        assert tokenizer_2 is not None  # A second text encoder comes with its tokenizer.
        tokenizers[SECOND] = tokenizer_2
    for name in tokenizers:
        checks.check_text_encoder(configs[name], f"{name} config")
    text_configs = {name: CLIPTextConfig(**configs[name]) for name in tokenizers}
    text_fields = {name: config.to_dict() for name, config in text_configs.items()}
    checks.check_together(configs["unet"], configs["vae"], *text_fields.values())
    for name, config in text_configs.items():
        text_encoders.check_length(tokenizers[name], config.max_position_embeddings, name)
        text_encoders.check_vocabulary(
            tokenizers[name], config.vocab_size, f"The tokenizer of {name}"
        )
    latent_size(configs, options.get("size"))  # Refuses one that does not fit.
    second = text_configs.get(SECOND)
    # In float16 the VAEs of 2.1 and XL overflow; bfloat16 has float32's range.
    upcast = dtype == jnp.float16 and configs["vae"].get("force_upcast", True)
    return StableDiffusion(
        unet=_from_config(FlaxUNet2DConditionModel, configs["unet"], dtype),
        vae=_from_config(FlaxAutoencoderKL, configs["vae"], jnp.float32 if upcast else dtype),
        text_encoder=FlaxCLIPTextModule(text_configs["text_encoder"], dtype=dtype),
        tokenizer=tokenizer,
        configs={**configs, **text_fields},
        text_encoder_2=second and FlaxCLIPTextModelWithProjectionModule(second, dtype=dtype),
        tokenizer_2=tokenizer_2,
        **options,
    )


def _from_config(kind, config: Mapping[str, Any], dtype) -> Any:
    return kind.from_config(dict(config), dtype=dtype)


def init_stable_diffusion(
    configs: Mapping[str, Mapping[str, Any]],
    rng: jax.Array,
    tokenizer: CLIPTokenizerFast,
    dtype=jnp.float32,
    **options,
) -> tuple[StableDiffusion, dict[str, Any]]:
    """Builds the networks, and draws parameters at random to train them from scratch.

    Args:
      configs, tokenizer, dtype, **options: as in `build_stable_diffusion`.
      rng: a PRNG key.

    Returns:
      The model, and its parameters as float32 host arrays; see `load_stable_diffusion`.

    Raises:
      UserError: as `build_stable_diffusion`.
    """
    model = build_stable_diffusion(configs, tokenizer, dtype, **options)
    return model, random_parameters(parameter_template(model), rng)


def parameter_template(model: StableDiffusion) -> dict[str, Any]:
    """Returns the shapes and dtypes of the parameters that `load_stable_diffusion` returns."""

    def template(name):
        network = getattr(model, name)
        if name == "unet":
            return jax.eval_shape(network.init_weights, jax.random.key(0))
        if name == "vae":
            return vae_template(network, model.configs["vae"])
        return text_template(network)

    return join_networks({name: template(name) for name in model.networks})
