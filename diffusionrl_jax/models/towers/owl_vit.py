"""OWL-ViT's and OWLv2's open-vocabulary classification of image patches.

They are Minderer et al., 2205.06230 and 2306.09683: CLIP towers, a normalisation, the class head,
and the box head, which most scores do without. OWLv2's objectness head is left out, which tells
objects from background without a query. The names of the parameters are those of
transformers' OwlViTForObjectDetection and Owlv2ForObjectDetection, which otherwise are the same
network.
"""

import dataclasses
import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from transformers import Owlv2Config, OwlViTConfig
from transformers.models.clip.modeling_flax_clip import FlaxCLIPTextModule, FlaxCLIPVisionModule

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.parameters import apply
from diffusionrl_jax.models.towers import clip, heads

BOX_EPSILON = 1e-4  # It keeps the logarithms of shares of 0 and 1 finite.
EPSILON = 1e-6  # It is added to the norms, as in OwlViTClassPredictionHead.
CONFIGS = {"owlvit": OwlViTConfig, "owlv2": Owlv2Config}
# Tensors of the published checkpoints that a score does not need.
UNUSED = (
    r"^(box|objectness)_head\.",
    r"^box_bias$",
    r"^owl(vit|v2)\.visual_projection\.",
    r"^owl(vit|v2)\.logit_scale$",
    *weights.BUFFERS,
)
NO_BOX_HEAD = r"^(?!box_head\.)"  # It fits all tensors but those of the box head.
# CLIP's own module misspells this layer's name, and OWL-ViT's does not.
_SPELLING = (r"\.pre_layrnorm\.", ".pre_layernorm.")
# The renames from the names of `template` to a checkpoint's, by the checkpoint's model_type.
RENAMES = {
    "owlvit": weights.substitution(_SPELLING),
    "owlv2": weights.substitution(_SPELLING, (r"^owlvit\.", "owlv2.")),
}


@dataclasses.dataclass(frozen=True, eq=False)
class OwlViT:
    """The detector's two towers. The parameters of its head stand beside theirs in the tree.

    Attributes:
      vision, text: the towers.
      model_type: "owlvit" or "owlv2", which differ in how pictures are prepared for them.
    """

    vision: FlaxCLIPVisionModule
    text: FlaxCLIPTextModule
    model_type: str = "owlvit"


def build(config: Mapping, dtype: jnp.dtype = jnp.float32) -> OwlViT:
    """Builds the model from OwlViTConfig's or Owlv2Config's fields.

    Args:
      config: "vision_config" and "text_config", in which what is left out is transformers' default,
        and "model_type", which is "owlvit" where it is left out.
      dtype: the dtype in which the towers compute.

    Raises:
      UserError: the model_type is another.
    """
    model_type = config.get("model_type", "owlvit")
    if model_type not in CONFIGS:
        raise UserError(
            f"The detector's model_type is {model_type!r}; known are {' and '.join(CONFIGS)}."
        )
    filled = CONFIGS[model_type](
        vision_config=dict(config["vision_config"]), text_config=dict(config["text_config"])
    )
    # With eos_token_id 2, transformers takes the token of the highest id as the end, as OWL-ViT
    # does.
    text = filled.text_config.to_dict() | {"eos_token_id": 2}
    return OwlViT(
        vision=clip.vision_tower(filled.vision_config.to_dict(), dtype),
        text=clip.text_tower(text, dtype),
        model_type=model_type,
    )


def template(model: OwlViT) -> dict:
    """Returns the shapes of all parameters, named and nested as the checkpoint's keys are."""
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
    return apply(nn.LayerNorm(epsilon=epsilon), {"params": params}, inputs)


def _unit(vectors: jax.Array) -> jax.Array:
    return vectors / (jnp.linalg.norm(vectors, axis=-1, keepdims=True) + EPSILON)


def embed_queries(model: OwlViT, params: Mapping, input_ids: jax.Array) -> jax.Array:
    """Returns the queries' embeddings, of norm 1.

    Args:
      model: the towers.
      params: the full tree of `template`.
      input_ids: int32 [queries, tokens], padded with 0. The end-of-text id is the largest.

    Returns:
      float32 [queries, text width].
    """
    pooled = clip.pooled_text(model.text, params["owlvit"], input_ids).astype(jnp.float32)
    embedded = pooled @ params["owlvit"]["text_projection"]["kernel"]
    return embedded / jnp.linalg.norm(embedded, axis=-1, keepdims=True)


def patch_features(model: OwlViT, params: Mapping, pixels: jax.Array) -> jax.Array:
    """Returns the patches' tokens, each merged with the class token, float32 [n, patches, width].

    Args:
      model: the towers.
      params: the tree of `template`. The text tower is not needed.
      pixels: normalised pixels, float [n, size, size, 3].
    """
    epsilon = model.vision.config.layer_norm_eps
    tokens = clip.image_tokens(model.vision, params["owlvit"], pixels).astype(jnp.float32)
    tokens = _layer_norm(params["owlvit"]["vision_model"]["post_layernorm"], epsilon, tokens)
    return _layer_norm(params["layer_norm"], epsilon, tokens[:, 1:] * tokens[:, :1])


def class_logits(params: Mapping, features: jax.Array, queries: jax.Array) -> jax.Array:
    """Returns how well each patch fits each query.

    Args:
      params: a tree that holds "class_head".
      features: the patches' features, float32 [n, patches, width], from `patch_features`.
      queries: the queries' embeddings, float32 [n, queries, text width], or [queries, text width]
        if they are the same for all pictures.

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


def box_template(model: OwlViT) -> dict:
    """Returns the shapes of the box head's parameters, which `template` leaves out."""
    width = model.vision.config.hidden_size
    sizes = {"dense0": width, "dense1": width, "dense2": 4}
    return {"box_head": {name: heads.dense_template(width, size) for name, size in sizes.items()}}


def boxes(params: Mapping, features: jax.Array) -> jax.Array:
    """Returns the box around what each patch sees.

    Args:
      params: a tree that holds "box_head".
      features: the patches' features, float32 [n, patches, width], from `patch_features`. The
        patches are those of a square, row by row.

    Returns:
      float32 [n, patches, 4]: left, top, right, bottom, in shares of the square.
    """
    head = params["box_head"]
    hidden = nn.gelu(heads.dense(head["dense0"], features), approximate=False)
    hidden = nn.gelu(heads.dense(head["dense1"], hidden), approximate=False)
    side = math.isqrt(features.shape[1])
    # A box is told from that of its own patch, whose place is its lower right corner.
    place = (np.stack(np.meshgrid(*[np.arange(side)] * 2), -1).reshape(-1, 2) + 1) / side
    usual = np.concatenate([place, np.full_like(place, 1 / side)], -1).astype(np.float32)
    bias = np.log(usual + BOX_EPSILON) - np.log1p(-usual + BOX_EPSILON)
    centre, size = jnp.split(jax.nn.sigmoid(heads.dense(head["dense2"], hidden) + bias), 2, -1)
    return jnp.concatenate([centre - size / 2, centre + size / 2], -1)
