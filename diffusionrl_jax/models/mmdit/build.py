"""Builds the networks of a transformer's folder from their configs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from diffusers import FlaxAutoencoderKL  # pyright: ignore[reportPrivateImportUsage]
from transformers import CLIPTextConfig, PreTrainedTokenizerBase
from transformers.models.clip.modeling_flax_clip import (
    FlaxCLIPTextModelWithProjectionModule,
    FlaxCLIPTextModule,
)

from diffusionrl_jax.data.stored_tensors import StoredTensor
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models import text_encoders
from diffusionrl_jax.models.folders.networks import join_networks
from diffusionrl_jax.models.mmdit.flux import PATCH_SIZE, FluxTransformer
from diffusionrl_jax.models.mmdit.joint import JointTransformer
from diffusionrl_jax.models.mmdit.model import MMDiT, latent_size
from diffusionrl_jax.models.mmdit.pipelines import PIPELINES, T5
from diffusionrl_jax.models.mmdit.positions import middle, position_table
from diffusionrl_jax.models.parameters import random_parameters
from diffusionrl_jax.models.stable_diffusion.autoencoder import vae_template
from diffusionrl_jax.models.stable_diffusion.interceptors import check_options
from diffusionrl_jax.models.t5 import make_t5_encoder
from diffusionrl_jax.models.towers.clip import text_template

GUIDANCE = 3.5  # FluxPipeline's.
CLIP_MODULES = {
    "CLIPTextModel": FlaxCLIPTextModule,
    "CLIPTextModelWithProjection": FlaxCLIPTextModelWithProjectionModule,
}


def make_joint_transformer(
    config: Mapping[str, Any],
    table: np.ndarray,
    size: tuple[int, int],
    dtype: Any,
    remat: str = "none",
) -> JointTransformer:
    """Makes Stable Diffusion 3's transformer.

    Args:
      config: the contents of its config.json.
      table: the table of places, [1, most * most, width].
      size: the rows and columns of latents.
      dtype, remat: as in `JointTransformer`.

    Raises:
      UserError: the latents are larger than the table.
    """
    patch = config["patch_size"]
    rows, columns = (side // patch for side in size)
    return JointTransformer(
        layers=config["num_layers"],
        heads=config["num_attention_heads"],
        head_size=config["attention_head_dim"],
        channels=config["in_channels"],
        patch_size=patch,
        text_width=config["joint_attention_dim"],
        pooled_width=config["pooled_projection_dim"],
        normalises=config.get("qk_norm") is not None,
        dual=frozenset(config.get("dual_attention_layers") or ()),
        positions=middle(table, config["pos_embed_max_size"], rows, columns),
        dtype=dtype,
        remat=remat,
    )


def make_flux_transformer(
    config: Mapping[str, Any], dtype: Any, remat: str = "none", guidance: float | None = None
) -> FluxTransformer:
    """Makes FLUX's transformer.

    Args:
      config: the contents of its config.json.
      dtype, remat: as in `FluxTransformer`.
      guidance: the scale of guidance that it is given, if it takes one; None is `GUIDANCE`.
    """
    guidance = GUIDANCE if guidance is None else guidance
    return FluxTransformer(
        layers=config["num_layers"],
        single_layers=config["num_single_layers"],
        heads=config["num_attention_heads"],
        head_size=config["attention_head_dim"],
        channels=config["in_channels"] // PATCH_SIZE**2,
        text_width=config["joint_attention_dim"],
        pooled_width=config["pooled_projection_dim"],
        axes=tuple(config["axes_dims_rope"]),
        guidance=guidance if config.get("guidance_embeds") else None,
        dtype=dtype,
        remat=remat,
    )


def build_mmdit(
    configs: Mapping[str, Mapping[str, Any]],
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    table: np.ndarray | StoredTensor | None,
    dtype=jnp.float32,
    *,
    remat: str = "none",
    text_tokens: int | None = None,
    embedded_guidance: float | None = None,
    **options,
) -> MMDiT:
    """Builds the networks that the configs describe.

    Args:
      configs: as `MMDiT.configs`, checked by `read_configs`.
      tokenizers: the tokenizer of each text encoder.
      table: the table of places, [1, most * most, width]; None for FLUX.
      dtype: the dtype in which the networks compute. Their parameters are float32 all the same.
      remat: what of the transformer's blocks is computed again for the backward pass, as in
        `run_block`.
      text_tokens: how many tokens T5 reads; None is what the pipeline reads.
      embedded_guidance: the scale of guidance that FLUX's transformer is given, if it takes one;
        None is the usual one.
      **options: `convolution`, `attention`, `mesh` and `size` of `MMDiT`.

    Raises:
      UserError: a size does not fit the networks, there is no such option, or a tokenizer does not
        fit its text encoder.
    """
    check_options(remat, options.get("convolution", "xla"))
    pipeline = PIPELINES[configs["pipeline"]["_class_name"]]
    encoders, complete = {}, {}
    for name, tokenizer in tokenizers.items():
        if pipeline.kinds[name].name == T5:
            encoders[name] = make_t5_encoder(configs[name], f"{name} config", dtype)
            vocabulary = encoders[name].config["vocab_size"]
        else:
            config = CLIPTextConfig(**configs[name])
            complete[name] = config.to_dict()
            encoders[name] = CLIP_MODULES[pipeline.kinds[name].name](config, dtype=dtype)
            vocabulary = config.vocab_size
            text_encoders.check_length(tokenizer, config.max_position_embeddings, name)
        text_encoders.check_vocabulary(tokenizer, vocabulary, f"The tokenizer of {name}")
    size = latent_size(configs, options.get("size"))
    # In float16 VAEs overflow; bfloat16 has float32's range.
    upcast = dtype == jnp.float16 and configs["vae"].get("force_upcast", True)
    vae_dtype = jnp.float32 if upcast else dtype
    vae: Any = FlaxAutoencoderKL.from_config(dict(configs["vae"]), dtype=vae_dtype)
    fields = configs["transformer"]
    if table is None:
        transformer = make_flux_transformer(fields, dtype, remat, embedded_guidance)
        if embedded_guidance is not None and transformer.guidance is None:
            raise UserError(
                f"config.sampler.embedded_guidance={embedded_guidance} is for transformers with "
                "guidance_embeds, such as FLUX.1 dev's, and this one has none: set it to 0."
            )
    else:
        transformer = make_joint_transformer(fields, np.asarray(table), size, dtype, remat)
    return MMDiT(
        transformer=transformer,
        vae=vae,
        encoders=encoders,
        tokenizers=tokenizers,
        configs={**configs, **complete},
        text_tokens=pipeline.text_tokens if text_tokens is None else text_tokens,
        position_table=table,
        **options,
    )


def parameter_template(model: MMDiT) -> dict[str, Any]:
    """Returns the shapes and dtypes of the parameters that `load_mmdit` returns."""

    def template(name):
        if name == "transformer":
            return model.transformer.template()
        if name == "vae":
            return vae_template(model.vae, model.configs["vae"])
        encoder = model.encoders[name]
        is_t5 = model.pipeline.kinds[name].name == T5
        return encoder.template() if is_t5 else text_template(encoder)

    return join_networks({name: template(name) for name in model.networks})


def init_mmdit(
    configs: Mapping[str, Mapping[str, Any]],
    rng: jax.Array,
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    dtype=jnp.float32,
    **options,
) -> tuple[MMDiT, dict[str, Any]]:
    """Builds the networks, and draws parameters at random to train them from scratch.

    Args:
      configs, tokenizers, dtype, **options: as in `build_mmdit`.
      rng: a PRNG key.

    Returns:
      The model, and its parameters as float32 host arrays; see `load_mmdit`.

    Raises:
      UserError: as `build_mmdit`.
    """
    fields, table = configs["transformer"], None
    if "pos_embed_max_size" in fields:
        width = fields["num_attention_heads"] * fields["attention_head_dim"]
        base = fields["sample_size"] // fields["patch_size"]
        table = position_table(fields["pos_embed_max_size"], base, width)
    model = build_mmdit(configs, tokenizers, table, dtype, **options)
    return model, random_parameters(parameter_template(model), rng)
