"""CLIP's two towers as transformers' Flax modules."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from transformers import CLIPTextConfig, CLIPVisionConfig
from transformers.models.clip.modeling_flax_clip import FlaxCLIPTextModule, FlaxCLIPVisionModule


def vision_tower(config: Mapping, dtype: jnp.dtype = jnp.float32) -> FlaxCLIPVisionModule:
    """The image tower; `config` holds CLIPVisionConfig's fields."""
    return FlaxCLIPVisionModule(CLIPVisionConfig(**config), dtype=dtype)


def text_tower(config: Mapping, dtype: jnp.dtype = jnp.float32) -> FlaxCLIPTextModule:
    """The text tower; `config` holds CLIPTextConfig's fields."""
    return FlaxCLIPTextModule(CLIPTextConfig(**config), dtype=dtype)


def vision_template(tower: FlaxCLIPVisionModule) -> dict:
    """Shapes of the image tower's parameters: {"vision_model": ...}."""
    size = tower.config.image_size
    pixels = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(tower.init, jax.random.key(0), pixels)["params"]


def text_template(tower: FlaxCLIPTextModule) -> dict:
    """Shapes of the text tower's parameters: {"text_model": ...}."""
    tokens = jax.ShapeDtypeStruct((1, tower.config.max_position_embeddings), jnp.int32)
    return jax.eval_shape(tower.init, jax.random.key(0), tokens, tokens, tokens)["params"]


def _tower_params(params: Mapping, name: str) -> dict:
    return {"params": {name: params[name]}}


def image_tokens(tower: FlaxCLIPVisionModule, params: Mapping, pixels: jax.Array) -> jax.Array:
    """The last layer's tokens, class token first, before the final normalisation.

    Args:
      tower: the image tower.
      params: holds "vision_model"; other entries are ignored.
      pixels: normalised float [n, size, size, 3].

    Returns:
      [n, 1 + patches, width].
    """
    return tower.apply(_tower_params(params, "vision_model"), pixels).last_hidden_state


def pooled_image(tower: FlaxCLIPVisionModule, params: Mapping, pixels: jax.Array) -> jax.Array:
    """The class token after the final normalisation: [n, width]; arguments as `image_tokens`."""
    return tower.apply(_tower_params(params, "vision_model"), pixels).pooler_output


def pooled_text(tower: FlaxCLIPTextModule, params: Mapping, input_ids: jax.Array) -> jax.Array:
    """The end-of-text token's state after the final normalisation.

    No padding mask is needed: attention is causal, and padding comes after the end of the text.

    Args:
      tower: the text tower.
      params: holds "text_model"; other entries are ignored.
      input_ids: int32 [n, tokens].

    Returns:
      [n, width].
    """
    positions = jnp.broadcast_to(jnp.arange(input_ids.shape[-1]), input_ids.shape)
    outputs = tower.apply(
        _tower_params(params, "text_model"), input_ids, jnp.ones_like(input_ids), positions
    )
    return outputs.pooler_output
