"""The encoder of T5 1.1 (1910.10683, 2002.05202), which reads long prompts.

Its names are those of T5EncoderModel of PyTorch's transformers, whose output it is checked against.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.distributed.shards import gather_shards
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders import fields, weights
from diffusionrl_jax.models.norms import root_mean_square
from diffusionrl_jax.models.parameters import Parameters, shape
from diffusionrl_jax.models.stacks import scan_blocks, stack_name, stacked_shapes

BIAS = "relative_attention_bias"
# Our names number lists, and two of T5's layers have a number in their name. The embedding has two
# names, and a file has one of them or both.
t5_name = weights.substitution((r"\.wi\.(\d)\.", r".wi_\1."))
stored_t5_name = weights.substitution((r"^encoder\.embed_tokens\.", "shared."))
# T5Config's defaults.
DEFAULTS = {
    "d_ff": 2048,
    "d_kv": 64,
    "d_model": 512,
    "feed_forward_proj": "relu",
    "layer_norm_epsilon": 1e-6,
    "num_heads": 8,
    "num_layers": 6,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "vocab_size": 32128,
}
KINDS = {
    **dict.fromkeys(
        ("d_ff", "d_kv", "d_model", "num_heads", "relative_attention_max_distance", "vocab_size"),
        fields.WHOLE,
    ),
    "feed_forward_proj": fields.TEXT,
    "layer_norm_epsilon": fields.ABOVE_ZERO,
    "num_layers": fields.LAYERS,
    "relative_attention_num_buckets": fields.WHOLE,
}


@dataclasses.dataclass(frozen=True)
class T5Encoder:
    """The encoder's sizes. Its methods are pure functions of its parameters.

    Attributes:
      config: the fields of its config.json, with all of `DEFAULTS`.
      dtype: the dtype in which it computes. float16 overflows in published ones.
    """

    config: Mapping[str, Any]
    dtype: Any = jnp.float32

    @property
    def stack(self) -> str:
        """The name under which the blocks' parameters are kept."""
        return stack_name("block", 0, self.config["num_layers"] - 1)

    def template(self) -> dict[str, Any]:
        """Returns the shapes of the parameters."""
        config = self.config
        width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
        to_heads, norm = {"kernel": shape(width, inner)}, {"scale": shape(width)}
        wide = {"kernel": shape(width, config["d_ff"])}
        block = {
            "layer_0": {
                "SelfAttention": {
                    **dict.fromkeys(("q", "k", "v"), to_heads),
                    "o": {"kernel": shape(inner, width)},
                },
                "layer_norm": norm,
            },
            "layer_1": {
                "DenseReluDense": {
                    "wi_0": wide,
                    "wi_1": wide,
                    "wo": {"kernel": shape(config["d_ff"], width)},
                },
                "layer_norm": norm,
            },
        }
        table = shape(config["relative_attention_num_buckets"], config["num_heads"])
        return {
            "shared": {"embedding": shape(config["vocab_size"], width)},
            "encoder": {
                # The first block's table of distances serves all of them.
                "block_0": {"layer_0": {"SelfAttention": {BIAS: {"embedding": table}}}},
                self.stack: stacked_shapes(block, config["num_layers"]),
                "final_layer_norm": norm,
            },
        }

    def encode(self, params: Parameters, input_ids: jax.Array) -> jax.Array:
        """Returns the last states, after the final norm, [n, tokens, width] in the compute dtype.

        Args:
          params: the parameters, of `template`'s shapes. Large ones may be `Shard`s.
          input_ids: int32 [n, tokens]. Padding is attended to, as Stable Diffusion 3 was trained.
        """
        config, blocks = self.config, params["encoder"][self.stack]
        others = {name: part for name, part in params["encoder"].items() if name != self.stack}
        others = gather_shards({**params, "encoder": others}, after=input_ids)
        encoder = others["encoder"]
        tokens = input_ids.shape[1]
        table = encoder["block_0"]["layer_0"]["SelfAttention"][BIAS]["embedding"]
        buckets = distance_buckets(
            tokens,
            config["relative_attention_num_buckets"],
            config["relative_attention_max_distance"],
        )
        bias = table[buckets].transpose(2, 0, 1)[None]
        states = others["shared"]["embedding"].astype(self.dtype)[input_ids]

        def norm(layer, values):
            return root_mean_square(layer["scale"], values, config["layer_norm_epsilon"])

        def multiply(layer, values):
            return values @ layer["kernel"].astype(values.dtype)

        def heads(layer, values):
            return multiply(layer, values).reshape(*values.shape[:2], config["num_heads"], -1)

        def block(params, states):
            attention = params["layer_0"]["SelfAttention"]
            normal = norm(params["layer_0"]["layer_norm"], states)
            query, key, value = (heads(attention[name], normal) for name in ("q", "k", "v"))
            # T5 does not scale its logits.
            seen = jax.nn.dot_product_attention(query, key, value, bias, scale=1.0)
            states += multiply(attention["o"], seen.reshape(*seen.shape[:2], -1))
            layers = params["layer_1"]["DenseReluDense"]
            normal = norm(params["layer_1"]["layer_norm"], states)
            gate = jax.nn.gelu(multiply(layers["wi_0"], normal), approximate=True)
            return states + multiply(layers["wo"], gate * multiply(layers["wi_1"], normal))

        states = scan_blocks(block, blocks, states)
        return norm(encoder["final_layer_norm"], states)


def distance_buckets(tokens: int, buckets: int, farthest: int) -> np.ndarray:
    """Returns in which bucket the distance from each token to each other one lies.

    Half of the buckets are for tokens behind, and of each half the first half is for one distance
    each. The rest grow with the logarithm of the distance, up to `farthest`.

    Args:
      tokens: the number of tokens.
      buckets: the number of buckets.
      farthest: the distance from which on all lie in the last bucket.

    Returns:
      int [tokens, tokens]: of each query's row, the bucket of each key.
    """
    places = np.arange(tokens)
    ahead = places[None] - places[:, None]
    half, exact = buckets // 2, buckets // 4
    distance = np.abs(ahead)
    # In float32, as networks were trained: at a power of two the last digit decides.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(math.log(farthest / exact)) * np.float32(half - exact)
    far = np.minimum(exact + steps.astype(np.int64), half - 1)
    return half * (ahead > 0) + np.where(distance < exact, distance, far)


def complete_config(config: Mapping[str, Any], source: object) -> dict[str, Any]:
    """Returns the contents of a config.json with all of `DEFAULTS`.

    Args:
      config: the contents of the file.
      source: the file, for messages.

    Raises:
      UserError: a field is wrong, or asks for another T5 than version 1.1.
    """
    fields.check_fields(config, KINDS, source)
    complete = {**DEFAULTS, **fields.without_nulls(config)}
    if (kind := complete["feed_forward_proj"]) != "gated-gelu":
        raise UserError(
            f"{source}: feed_forward_proj is {kind!r}, but only T5 1.1, of 'gated-gelu', is "
            "supported."
        )
    if complete["relative_attention_num_buckets"] % 4:
        raise UserError(
            f"{source}: relative_attention_num_buckets is "
            f"{complete['relative_attention_num_buckets']}, and must be a multiple of 4."
        )
    return complete


def make_t5_encoder(config: Mapping[str, Any], source: object, dtype: Any) -> T5Encoder:
    """Makes the encoder that a config.json describes.

    Args:
      config, source: as in `complete_config`.
      dtype: the dtype in which it computes.

    Raises:
      UserError: as `complete_config`.
    """
    return T5Encoder(complete_config(config, source), dtype)
