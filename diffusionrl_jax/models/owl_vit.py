"""OWL-ViT's open-vocabulary classification of image patches (Minderer et al., arXiv 2205.06230).

CLIP towers, a normalisation and the class head; the box head is left out, since a score needs no
boxes. Parameter names follow transformers' OwlViTForObjectDetection.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from transformers.models.clip.modeling_flax_clip import FlaxCLIPTextModule, FlaxCLIPVisionModule

from diffusionrl_jax.models import clip, heads, weights

EPSILON = 1e-6  # of the norms, as in OwlViTClassPredictionHead
# Tensors of the published checkpoint that a score does not need.
UNUSED = (
    r"^box_head\.",
    r"^box_bias$",
    r"^owlvit\.visual_projection\.",
    r"^owlvit\.logit_scale$",
    *weights.BUFFERS,
)
# CLIP's own module misspells it, and OWL-ViT does not.
rename = weights.substitution((r"\.pre_layrnorm\.", ".pre_layernorm."))


@dataclasses.dataclass(frozen=True, eq=False)
class OwlViT:
    """The two towers; the head's parameters stand beside theirs in the tree."""

    vision: FlaxCLIPVisionModule
    text: FlaxCLIPTextModule


def build(config: Mapping, dtype: jnp.dtype = jnp.float32) -> OwlViT:
    """The model from OwlViTConfig's `vision_config` and `text_config`.

    transformers' OwlViT defaults differ from CLIP's, so what a config leaves out is filled with
    google/owlvit-base-patch32's values.
    """
    vision = {"image_size": 768, "patch_size": 32, "hidden_act": "quick_gelu"}
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    text |= {"max_position_embeddings": 16, "hidden_act": "quick_gelu"}
    # With eos_token_id 2, transformers takes the token of the highest id as the end: OWL-ViT's way.
    text_config = {**text, **config["text_config"], "eos_token_id": 2}
    return OwlViT(
        vision=clip.vision_tower({**vision, **config["vision_config"]}, dtype),
        text=clip.text_tower(text_config, dtype),
    )


def template(model: OwlViT) -> dict:
    """Shapes of all parameters, named and nested as the checkpoint's keys are."""
    width, text_width = model.vision.config.hidden_size, model.text.config.hidden_size
    projection = jax.ShapeDtypeStruct((text_width, text_width), jnp.float32)
    scale = jax.ShapeDtypeStruct((width,), jnp.float32)
    return {
        "owlvit": {
            **clip.vision_template(model.vision),
            **clip.text_template(model.text),
            "text_projection": {"kernel": projection},
        },
        "class_head": {
            "dense0": heads.dense_template(width, text_width),
            "logit_shift": heads.dense_template(width, 1),
            "logit_scale": heads.dense_template(width, 1),
        },
        "layer_norm": {"scale": scale, "bias": scale},
    }


def _layer_norm(params: Mapping, epsilon: float, inputs: jax.Array) -> jax.Array:
    return nn.LayerNorm(epsilon=epsilon).apply({"params": params}, inputs)


def _unit(vectors: jax.Array) -> jax.Array:
    return vectors / (jnp.linalg.norm(vectors, axis=-1, keepdims=True) + EPSILON)


def embed_queries(model: OwlViT, params: Mapping, input_ids: jax.Array) -> jax.Array:
    """Query embeddings of norm 1.

    Args:
      model: the towers.
      params: the full tree of `template`.
      input_ids: int32 [queries, tokens], padded with 0; the end-of-text id is the largest.

    Returns:
      float32 [queries, text width].
    """
    pooled = clip.pooled_text(model.text, params["owlvit"], input_ids).astype(jnp.float32)
    embedded = pooled @ params["owlvit"]["text_projection"]["kernel"]
    return embedded / jnp.linalg.norm(embedded, axis=-1, keepdims=True)


def patch_features(model: OwlViT, params: Mapping, pixels: jax.Array) -> jax.Array:
    """Patch tokens merged with the class token: float32 [n, patches, width].

    Args:
      model: the towers.
      params: the tree of `template`; the text tower is not needed.
      pixels: normalised float [n, size, size, 3].
    """
    epsilon = model.vision.config.layer_norm_eps
    tokens = clip.image_tokens(model.vision, params["owlvit"], pixels).astype(jnp.float32)
    tokens = _layer_norm(params["owlvit"]["vision_model"]["post_layernorm"], epsilon, tokens)
    return _layer_norm(params["layer_norm"], epsilon, tokens[:, 1:] * tokens[:, :1])


def class_logits(params: Mapping, features: jax.Array, queries: jax.Array) -> jax.Array:
    """How well each patch fits each query.

    Args:
      params: holds "class_head".
      features: float32 [n, patches, width], from `patch_features`.
      queries: float32 [n, queries, text width], or [queries, text width] for all pictures.

    Returns:
      float32 [n, patches, queries].
    """
    head = params["class_head"]
    similarity = jnp.einsum(
        "npd,qd->npq" if queries.ndim == 2 else "npd,nqd->npq",
        _unit(heads.dense(head["dense0"], features)),
        _unit(queries),
    )
    shift = heads.dense(head["logit_shift"], features)
    scale = nn.elu(heads.dense(head["logit_scale"], features)) + 1
    return (similarity + shift) * scale
