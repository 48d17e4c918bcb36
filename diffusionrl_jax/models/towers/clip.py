"""CLIP's two towers as transformers' Flax modules, alone or projected into their joint space."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from transformers.models.clip.modeling_flax_clip import FlaxCLIPTextModule, FlaxCLIPVisionModule

from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.parameters import apply

# From transformers' names to those of open_clip and of OpenAI's own code.
open_clip_rename = weights.substitution(
    (r"^visual_projection\.", "visual.proj."),
    (r"^vision_model\.", "visual."),
    (r"^text_model\.", ""),
    (r"^(visual\.|)encoder\.layers\.(\d+)\.", r"\1transformer.resblocks.\2."),
    (r"(^|\.)embeddings\.position_embedding\.weight$", r"\1positional_embedding"),
    (r"(^|\.)embeddings\.patch_embedding\.", r"\1conv1."),
    (r"(^|\.)embeddings\.", r"\1"),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.pre_layrnorm\.", ".ln_pre."),
    (r"\.post_layernorm\.", ".ln_post."),
    (r"^final_layer_norm\.", "ln_final."),
)
OPEN_CLIP_PROJECTIONS = weights.FusedProjections(
    fused="{module}.attn.in_proj_{leaf}",
    part="{module}.attn.{role}_proj.{leaf}",
    roles=("q", "k", "v"),
)
# Matrices that open_clip multiplies from the right, and that linear layers store transposed.
OPEN_CLIP_MATRICES = ("visual.proj", "text_projection")


def split_open_clip(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns an open_clip state as transformers' layers have it.

    Its fused projections are split, and its projections into the joint space become linear layers.

    Args:
      state: the array of each PyTorch name.
    """
    state = OPEN_CLIP_PROJECTIONS.split(state)
    for name in OPEN_CLIP_MATRICES:
        if name in state:
            state[f"{name}.weight"] = state.pop(name).T
    return state


def join_open_clip(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a state as open_clip has it. It is the inverse of `split_open_clip`."""
    state = OPEN_CLIP_PROJECTIONS.join(state)
    for name in OPEN_CLIP_MATRICES:
        if f"{name}.weight" in state:
            state[name] = state.pop(f"{name}.weight").T
    return state


def vision_tower(config: Mapping, dtype: jnp.dtype = jnp.float32) -> FlaxCLIPVisionModule:
    """Builds the image tower.

    Args:
      config: CLIPVisionConfig's fields.
      dtype: the dtype in which it computes.
    """
    return FlaxCLIPVisionModule(CLIPVisionConfig(**config), dtype=dtype)


def text_tower(config: Mapping, dtype: jnp.dtype = jnp.float32) -> FlaxCLIPTextModule:
    """Builds the text tower.

    Args:
      config: CLIPTextConfig's fields.
      dtype: the dtype in which it computes.
    """
    return FlaxCLIPTextModule(CLIPTextConfig(**config), dtype=dtype)


def vision_template(tower: FlaxCLIPVisionModule) -> dict:
    """Returns the shapes of the image tower's parameters, {"vision_model": ...}."""
    size = tower.config.image_size
    pixels = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(tower.init, jax.random.key(0), pixels)["params"]


def text_template(tower: FlaxCLIPTextModule) -> dict:
    """Returns the shapes of the text tower's parameters, {"text_model": ...}."""
    tokens = jax.ShapeDtypeStruct((1, tower.config.max_position_embeddings), jnp.int32)
    return jax.eval_shape(tower.init, jax.random.key(0), tokens, tokens, tokens)["params"]


def _tower_params(params: Mapping, name: str) -> dict:
    return {"params": {name: params[name]}}


def image_tokens(tower: FlaxCLIPVisionModule, params: Mapping, pixels: jax.Array) -> jax.Array:
    """Returns the last layer's tokens, class token first, before the final normalisation.

    Args:
      tower: the image tower.
      params: a tree that holds "vision_model". Other entries are ignored.
      pixels: normalised pixels, float [n, size, size, 3].

    Returns:
      [n, 1 + patches, width].
    """
    return apply(tower, _tower_params(params, "vision_model"), pixels).last_hidden_state


def pooled_image(tower: FlaxCLIPVisionModule, params: Mapping, pixels: jax.Array) -> jax.Array:
    """Returns the class token after the final normalisation, [n, width].

    Args:
      tower, params, pixels: as in `image_tokens`.
    """
    return apply(tower, _tower_params(params, "vision_model"), pixels).pooler_output


def pooled_text(tower: FlaxCLIPTextModule, params: Mapping, input_ids: jax.Array) -> jax.Array:
    """Returns the end-of-text token's state after the final normalisation.

    No padding mask is needed: attention is causal, and padding comes after the end of the text.

    Args:
      tower: the text tower.
      params: a tree that holds "text_model". Other entries are ignored.
      input_ids: the text's tokens, int32 [n, tokens].

    Returns:
      [n, width].
    """
    positions = jnp.broadcast_to(jnp.arange(input_ids.shape[-1]), input_ids.shape)
    outputs = apply(
        tower, _tower_params(params, "text_model"), input_ids, jnp.ones_like(input_ids), positions
    )
    return outputs.pooler_output


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """CLIP's two towers without their parameters.

    Attributes:
      vision: the image tower.
      text: the text tower.
      width: the width of their joint space.
    """

    vision: FlaxCLIPVisionModule
    text: FlaxCLIPTextModule
    width: int


def build(config: Mapping, dtype: jnp.dtype = jnp.float32) -> Clip:
    """Builds the model that a CLIPConfig describes.

    Args:
      config: CLIPConfig's fields: `vision_config`, `text_config` and `projection_dim`.
      dtype: the dtype in which both towers compute.
    """
    described: Any = CLIPConfig(**config)
    # With eos_token_id 2, transformers takes the token of the highest id as the end, as CLIP does.
    text = described.text_config.to_dict() | {"eos_token_id": 2}
    return Clip(
        vision=vision_tower(described.vision_config.to_dict(), dtype),
        text=text_tower(text, dtype),
        width=described.projection_dim,
    )


def projection_template(tower: FlaxCLIPVisionModule | FlaxCLIPTextModule, width: int) -> dict:
    """Returns the shape of a tower's projection, {"kernel"}, into a joint space of that width."""
    return {"kernel": jax.ShapeDtypeStruct((tower.config.hidden_size, width), jnp.float32)}


def template(model: Clip) -> dict:
    """Returns the shapes of all parameters, named as those of transformers' CLIPModel."""
    return {
        **vision_template(model.vision),
        **text_template(model.text),
        "visual_projection": projection_template(model.vision, model.width),
        "text_projection": projection_template(model.text, model.width),
        "logit_scale": jax.ShapeDtypeStruct((), jnp.float32),
    }


def unit(vectors: jax.Array) -> jax.Array:
    """Returns vectors [n, width] divided by their lengths."""
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def embed_image(tower: FlaxCLIPVisionModule, params: Mapping, pixels: jax.Array) -> jax.Array:
    """Returns a picture's embedding in the joint space, of norm 1.

    Args:
      tower: the image tower.
      params: a tree that holds "vision_model" and "visual_projection". Other entries are ignored.
      pixels: normalised pixels, float [n, size, size, 3].

    Returns:
      float32 [n, width].
    """
    pooled = pooled_image(tower, params, pixels).astype(jnp.float32)
    return unit(pooled @ params["visual_projection"]["kernel"])


def embed_text(tower: FlaxCLIPTextModule, params: Mapping, input_ids: jax.Array) -> jax.Array:
    """Returns a text's embedding in the joint space, of norm 1.

    Args:
      tower: the text tower.
      params: a tree that holds "text_model" and "text_projection". Other entries are ignored.
      input_ids: the text's tokens, with the end of the text before the padding, int32 [n, tokens].

    Returns:
      float32 [n, width].
    """
    pooled = pooled_text(tower, params, input_ids).astype(jnp.float32)
    return unit(pooled @ params["text_projection"]["kernel"])
