"""BLIP's image-grounded text encoder (2201.12086): a ViT, and a BERT that attends to its output.

It is built on transformers' FlaxViTModule and FlaxBertModule. The names of its parameters on disk
are those of BLIP's own code, which ImageReward.pt keeps.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from transformers import BertConfig, ViTConfig
from transformers.models.bert.modeling_flax_bert import FlaxBertModule
from transformers.models.vit.modeling_flax_vit import FlaxViTModule

from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.parameters import apply

# ImageReward-v1.0 has a ViT-L/16 at 224 pixels, and a BERT base with [DEC] and [ENC] added.
VISION_DEFAULTS = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}
TEXT_DEFAULTS = {"vocab_size": 30524}

# From transformers' ViT names to those of BLIP's own image encoder.
VISION_NAMES = (
    (r"^vision\.", "blip.visual_encoder."),
    (r"^(blip\.visual_encoder)\.embeddings\.cls_token$", r"\1.cls_token"),
    (r"^(blip\.visual_encoder)\.embeddings\.position_embeddings$", r"\1.pos_embed"),
    (r"^(blip\.visual_encoder)\.embeddings\.patch_embeddings\.projection", r"\1.patch_embed.proj"),
    (r"^(blip\.visual_encoder)\.layernorm\.", r"\1.norm."),
    (r"^(blip\.visual_encoder)\.encoder\.layer\.(\d+)\.", r"\1.blocks.\2."),
    (r"^(blip\.visual_encoder.*)\.layernorm_before\.", r"\1.norm1."),
    (r"^(blip\.visual_encoder.*)\.layernorm_after\.", r"\1.norm2."),
    (r"^(blip\.visual_encoder.*)\.attention\.attention\.", r"\1.attn.qkv."),
    (r"^(blip\.visual_encoder.*)\.attention\.output\.dense\.", r"\1.attn.proj."),
    (r"^(blip\.visual_encoder.*)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"^(blip\.visual_encoder.*)\.output\.dense\.", r"\1.mlp.fc2."),
)
TEXT_NAMES = ((r"^text\.", "blip.text_encoder."),)
rename = weights.substitution(*VISION_NAMES, *TEXT_NAMES)
PROJECTIONS = weights.FusedProjections(
    fused="{module}.attn.qkv.{leaf}",
    part="{module}.attn.qkv.{role}.{leaf}",
    roles=("query", "key", "value"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Blip:
    """BLIP's two networks without their parameters.

    Attributes:
      vision: the image encoder.
      text: the text encoder, which attends to the picture.
    """

    vision: FlaxViTModule
    text: FlaxBertModule


def build(vision_config: Mapping, text_config: Mapping, dtype: jnp.dtype = jnp.float32) -> Blip:
    """Builds the model.

    Args:
      vision_config: ViTConfig's fields. What they leave out is ImageReward's.
      text_config: BertConfig's fields. What they leave out is ImageReward's.
      dtype: the dtype in which both networks compute.
    """
    vision = ViTConfig(**{**VISION_DEFAULTS, **vision_config})
    text = BertConfig(
        **{**TEXT_DEFAULTS, **text_config},
        type_vocab_size=1,
        add_cross_attention=True,
        is_decoder=False,
    )
    return Blip(
        vision=FlaxViTModule(vision, dtype=dtype, add_pooling_layer=False),
        text=FlaxBertModule(text, dtype=dtype, add_pooling_layer=False),
    )


def _init(model: Blip, key: jax.Array) -> dict:
    size = model.vision.config.image_size
    vision_key, text_key = jax.random.split(key)
    vision = model.vision.init(vision_key, jnp.zeros((1, size, size, 3)))["params"]
    tokens = jnp.zeros((1, 1), jnp.int32)
    image = jnp.zeros((1, 1, model.vision.config.hidden_size))
    text = model.text.init(
        text_key,
        tokens,
        tokens,
        encoder_hidden_states=image,
        encoder_attention_mask=jnp.ones((1, 1)),
    )["params"]
    embeddings = {k: v for k, v in text["embeddings"].items() if k != "token_type_embeddings"}
    return {"vision": vision, "text": {**text, "embeddings": embeddings}}


def init(model: Blip, key: jax.Array) -> dict:
    """Draws fresh parameters {"vision", "text"}.

    They are transformers' trees, without the table of token types.
    """
    return jax.jit(_init, static_argnums=0)(model, key)


def template(model: Blip) -> dict:
    """Returns the shapes and dtypes of the parameters, in the tree that `init` draws."""
    return jax.eval_shape(lambda: _init(model, jax.random.key(0)))


def encode_image(model: Blip, params: Mapping, pixels: jax.Array) -> jax.Array:
    """Returns the picture's tokens, with the class token first.

    Args:
      model: the two encoders.
      params: the parameters {"vision", "text"}.
      pixels: normalised pixels, float [n, size, size, 3].

    Returns:
      [n, 1 + patches, vision width].
    """
    return apply(model.vision, {"params": params["vision"]}, pixels).last_hidden_state


def encode_text(
    model: Blip, params: Mapping, image: jax.Array, input_ids: jax.Array, mask: jax.Array
) -> jax.Array:
    """Encodes a text that attends to the picture.

    Args:
      model: the two encoders.
      params: the parameters {"vision", "text"}.
      image: the picture's tokens, from `encode_image`.
      input_ids: the text's tokens with [CLS] first, int32 [n, tokens].
      mask: int32 [n, tokens], 0 on padding.

    Returns:
      The last layer's state of [CLS], float32 [n, text width].
    """
    # BLIP's BERT has no token types, for which a table of zeros stands.
    width = model.text.config.hidden_size
    embeddings = {
        **params["text"]["embeddings"],
        "token_type_embeddings": {"embedding": jnp.zeros((1, width))},
    }
    outputs = apply(
        model.text,
        {"params": {**params["text"], "embeddings": embeddings}},
        input_ids,
        mask,
        encoder_hidden_states=image,
        encoder_attention_mask=jnp.ones(image.shape[:2], jnp.int32),
    )
    return outputs.last_hidden_state[:, 0].astype(jnp.float32)
