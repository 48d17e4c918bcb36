"""The block in which text and picture, each with weights of its own, attend jointly (2403.03206).

It is a block of Stable Diffusion 3 and 3.5, and of the first half of FLUX. The names of the
parameters are those of PyTorch's diffusers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffusionrl_jax.models.mmdit import layers
from diffusionrl_jax.models.mmdit.layers import linear_shapes
from diffusionrl_jax.models.norms import normalise, root_mean_square
from diffusionrl_jax.models.parameters import Parameters, shape

# Takes query, key and value, [n, tokens, heads, head size], and returns what the query has seen.
Attend = Callable[..., jax.Array]
# The projections of queries, keys and values, each with the name of its norm.
OWN = (("to_q", "norm_q"), ("to_k", "norm_k"), ("to_v", ""))
ADDED = (("add_q_proj", "norm_added_q"), ("add_k_proj", "norm_added_k"), ("add_v_proj", ""))


def block_shapes(
    heads: int, head_size: int, *, normalises: bool, is_dual: bool = False, is_last: bool = False
) -> dict[str, Any]:
    """Returns the shapes of a block's parameters.

    Args:
      heads, head_size: of each attention.
      normalises: whether queries and keys are divided by the root of their mean square.
      is_dual: whether the picture's tokens also attend to themselves alone.
      is_last: whether nothing is made of the text's tokens any more.
    """
    width = heads * head_size
    square = linear_shapes(width, width)
    own = {"to_q": square, "to_k": square, "to_v": square, "to_out_0": square}
    added = {"add_q_proj": square, "add_k_proj": square, "add_v_proj": square}
    if normalises:
        norm = {"scale": shape(head_size)}
        own |= {"norm_q": norm, "norm_k": norm}
        added |= {"norm_added_q": norm, "norm_added_k": norm}
    block = {
        "norm1": {"linear": linear_shapes(width, (9 if is_dual else 6) * width)},
        "norm1_context": {"linear": linear_shapes(width, (2 if is_last else 6) * width)},
        "attn": own | added,
        "ff": layers.mlp_shapes(width),
    }
    if is_dual:
        block["attn2"] = own
    if not is_last:
        block["attn"] |= {"to_add_out": square}
        block["ff_context"] = layers.mlp_shapes(width)
    return block


def joint_block(
    params: Parameters,
    streams: tuple[jax.Array, jax.Array],
    condition: jax.Array,
    heads: int,
    attend: Attend,
    attend_alone: Attend | None = None,
    rotate: Callable[[jax.Array], jax.Array] = lambda values: values,
) -> tuple[jax.Array, jax.Array]:
    """Applies a block.

    Args:
      params: its parameters, of `block_shapes`: they tell whether it is dual, or the last.
      streams: the picture's tokens [n, tokens, width] and the text's.
      condition: the embedding of time and text, after its SiLU, [n, width].
      heads: how many there are.
      attend: computes attention of the picture's tokens, followed by the text's.
      attend_alone: computes attention of the picture's tokens to themselves, where it is dual.
      rotate: turns the queries and keys of the picture by their places.

    Returns:
      The streams afterwards. The text of the last block is returned as it was.
    """
    picture, words = streams
    is_dual, is_last = "attn2" in params, "ff_context" not in params
    tokens = picture.shape[1]
    shift, scale, gate, *rest = layers.modulation(
        params["norm1"]["linear"], condition, 9 if is_dual else 6
    )
    normal = normalise(picture)
    own = projected(params["attn"], layers.modulate(normal, shift, scale), OWN, heads)
    query, key, value = rotate(own[0]), rotate(own[1]), own[2]
    if is_last:
        # The text is attended to, and attends to nothing.
        seen_words = layers.modulate_last(params["norm1_context"]["linear"], words, condition)
        added = projected(params["attn"], seen_words, ADDED[1:], heads)
        of_words = []
    else:
        shift, scale, *of_words = layers.modulation(params["norm1_context"]["linear"], condition, 6)
        seen_words = layers.modulate(normalise(words), shift, scale)
        query_words, *added = projected(params["attn"], seen_words, ADDED, heads)
        query = jnp.concatenate([query, query_words], axis=1)
    key, value = (jnp.concatenate(pair, axis=1) for pair in zip((key, value), added, strict=True))
    seen = layers.merge_heads(attend(query, key, value))
    picture += gate[:, None] * layers.linear(params["attn"]["to_out_0"], seen[:, :tokens])
    if is_dual:
        assert attend_alone is not None  # The network that has such blocks gives it.
        shift, scale, gate = rest[3:]
        alone = projected(params["attn2"], layers.modulate(normal, shift, scale), OWN, heads)
        of_itself = layers.merge_heads(attend_alone(*alone))
        picture += gate[:, None] * layers.linear(params["attn2"]["to_out_0"], of_itself)
    picture += _gated_mlp(params["ff"], picture, *rest[:3])
    if is_last:
        return picture, words
    gate_words, *rest_words = of_words
    words += gate_words[:, None] * layers.linear(params["attn"]["to_add_out"], seen[:, tokens:])
    return picture, words + _gated_mlp(params["ff_context"], words, *rest_words)


def projected(
    params: Parameters, tokens: jax.Array, names: Sequence[tuple[str, str]], heads: int
) -> list[jax.Array]:
    """Returns queries, keys or values [n, tokens, heads, head size], normalised where they are.

    Args:
      params: an attention's parameters.
      tokens: [n, tokens, width].
      names: for each, the names of the projection and of the norm, which need not be there.
      heads: how many there are.
    """
    results = []
    for projection, norm in names:
        values = layers.split_heads(layers.linear(params[projection], tokens), heads)
        if norm in params:
            values = root_mean_square(params[norm]["scale"], values)
        results.append(values)
    return results


def _gated_mlp(params, tokens, shift, scale, gate):
    """Returns what a block's feed-forward layers add to tokens."""
    normal = layers.modulate(normalise(tokens), shift, scale)
    return gate[:, None] * layers.mlp(params, normal)
