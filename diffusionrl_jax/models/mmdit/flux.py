"""The transformer of FLUX.1 (https://github.com/black-forest-labs/flux), without its parameters.

The names of the parameters are those of FluxTransformer2DModel of PyTorch's diffusers, whose output
it is checked against.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.models.mmdit import layers
from diffusionrl_jax.models.mmdit.blocks import OWN, Attend, block_shapes, joint_block, projected
from diffusionrl_jax.models.mmdit.layers import linear_shapes
from diffusionrl_jax.models.norms import normalise
from diffusionrl_jax.models.parameters import Parameters, parts, shape
from diffusionrl_jax.models.stacks import run_block, scan_blocks, stack_name, stacked_shapes
from diffusionrl_jax.models.text_encoders import Conditioning

# A token stands for so many rows, and columns, of latents.
PATCH_SIZE = 2
# The slowest rotation has a period of 2 pi times this.
SLOWEST = 10_000
ENTRY = ("x_embedder", "time_text_embed", "context_embedder")


@dataclasses.dataclass(frozen=True)
class FluxTransformer:
    """The sizes of the transformer. Its methods are pure functions of its parameters.

    Attributes:
      layers: the number of blocks in which text and picture have weights of their own.
      single_layers: the number of the blocks after them, in which they share their weights.
      heads, head_size: of each attention; their product is the network's width.
      channels: the channels of the latents.
      text_width, pooled_width: of what it is conditioned on.
      axes: how many numbers of each head are turned by a token's index, which is 0, by its row and
        by its column.
      guidance: the scale of guidance that it is given as an input; None if it takes none.
      dtype: the dtype in which it computes.
      remat: what of the blocks is computed again for the backward pass, as in `run_block`.
    """

    layers: int
    single_layers: int
    heads: int
    head_size: int
    channels: int
    text_width: int
    pooled_width: int
    axes: tuple[int, int, int]
    guidance: float | None
    dtype: Any = jnp.float32
    remat: str = "none"

    @property
    def width(self) -> int:
        """How many numbers a token has."""
        return self.heads * self.head_size

    @property
    def stacks(self) -> tuple[str, str]:
        """The names under which both kinds of blocks are kept."""
        return (
            stack_name("transformer_blocks", 0, self.layers - 1),
            stack_name("single_transformer_blocks", 0, self.single_layers - 1),
        )

    def template(self) -> dict[str, Any]:
        """Returns the shapes of the parameters."""
        width, packed = self.width, PATCH_SIZE**2 * self.channels
        double, single = self.stacks
        square, norm = linear_shapes(width, width), {"scale": shape(self.head_size)}
        single_block = {
            "norm": {"linear": linear_shapes(width, 3 * width)},
            "attn": {
                "to_q": square,
                "to_k": square,
                "to_v": square,
                "norm_q": norm,
                "norm_k": norm,
            },
            "proj_mlp": linear_shapes(width, layers.MLP_RATIO * width),
            "proj_out": linear_shapes((1 + layers.MLP_RATIO) * width, width),
        }
        double_block = block_shapes(self.heads, self.head_size, normalises=True)
        return {
            "x_embedder": linear_shapes(packed, width),
            "time_text_embed": layers.condition_shapes(
                width, self.pooled_width, is_guided=self.guidance is not None
            ),
            "context_embedder": linear_shapes(self.text_width, width),
            double: stacked_shapes(double_block, self.layers),
            single: stacked_shapes(single_block, self.single_layers),
            "norm_out": {"linear": linear_shapes(width, 2 * width)},
            "proj_out": linear_shapes(width, packed),
        }

    def denoise(
        self,
        params: Parameters,
        latents: jax.Array,
        times: jax.Array,
        text: Conditioning,
        attend: Attend,
        key_bias: np.ndarray | None = None,
    ) -> jax.Array:
        """Returns the velocity, noise minus clean latents.

        Args:
          params: the parameters, of `template`'s shapes. Large ones may be `Shard`s.
          latents: [n, channels, rows, columns].
          times: [n], 0 for clean latents to 1 for noise.
          text: n * P rows, P for each sample, of which one sample's come before the next one's.
          attend: computes attention; see `attention.attend`.
          key_bias: None, since no text encoder is left out; see `JointTransformer.denoise`.

        Returns:
          float32 [n * P, channels, rows, columns].
        """
        assert key_bias is None  # A T5 that is left out is Stable Diffusion 3's.
        passes = len(text.states) // len(latents)
        double, single = self.stacks
        rotate = functools.partial(rotated, turns=self._turns(*latents.shape[2:]))
        attend = functools.partial(attend, scale=self.head_size**-0.5)

        def enter(params, inputs):
            latents, times, states, pooled = inputs
            cut = layers.patches(latents.astype(self.dtype), PATCH_SIZE, layers.PACKED_ORDER)
            picture = jnp.repeat(layers.linear(params["x_embedder"], cut), passes, axis=0)
            pooled = pooled.astype(self.dtype)
            condition = layers.embed_condition(
                params["time_text_embed"], times, pooled, self.guidance
            )
            words = layers.linear(params["context_embedder"], states.astype(self.dtype))
            return picture, words, condition

        def double_block(params, streams):
            return joint_block(params, streams, condition, self.heads, attend, rotate=rotate)

        def single_block(params, tokens):
            shift, scale, gate = layers.modulation(params["norm"]["linear"], condition, 3)
            normal = layers.modulate(normalise(tokens), shift, scale)
            query, key, value = projected(params["attn"], normal, OWN, self.heads)
            seen = layers.merge_heads(attend(rotate(query), rotate(key), value))
            wide = jax.nn.gelu(layers.linear(params["proj_mlp"], normal), approximate=True)
            both = jnp.concatenate([seen, wide], axis=-1)
            return tokens + gate[:, None] * layers.linear(params["proj_out"], both)

        inputs = (latents, times, text.states, text.pooled)
        picture, words, condition = run_block(enter, parts(params, ENTRY), inputs)
        streams = scan_blocks(double_block, params[double], (picture, words), self.remat)
        tokens = jnp.concatenate(streams, axis=1)
        tokens = scan_blocks(single_block, params[single], tokens, self.remat)
        picture = tokens[:, : picture.shape[1]]
        cut = run_block(layers.leave, parts(params, layers.EXIT), (picture, condition))
        shape = latents.shape[1:]
        joined = layers.join_patches(cut, PATCH_SIZE, shape, layers.PACKED_ORDER)
        return joined.astype(jnp.float32)

    def _turns(self, rows: int, columns: int) -> np.ndarray:
        """Returns the angles by which a picture's tokens are turned, [tokens, head size / 2]."""
        rows, columns = rows // PATCH_SIZE, columns // PATCH_SIZE
        row, column = np.divmod(np.arange(rows * columns), columns)
        places = (np.zeros_like(row), row, column)
        frequencies = (SLOWEST ** -(np.arange(0, size, 2) / size) for size in self.axes)
        return np.concatenate(
            [place[:, None] * speed for place, speed in zip(places, frequencies, strict=True)],
            axis=1,
        )


def rotated(values: jax.Array, turns: np.ndarray) -> jax.Array:
    """Turns pairs of neighbouring numbers by angles, in float32: 2104.09864.

    Args:
      values: queries or keys, [n, tokens, heads, head size].
      turns: the angles of the first tokens, [tokens, head size / 2]. Those after them are not
        turned: text has no places.
    """
    still = values.shape[1] - len(turns)
    turns = np.pad(turns, ((0, still), (0, 0)))[None, :, None]
    cosine, sine = np.float32(np.cos(turns)), np.float32(np.sin(turns))
    pairs = values.astype(jnp.float32).reshape(*values.shape[:-1], -1, 2)
    one, other = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([one * cosine - other * sine, other * cosine + one * sine], axis=-1)
    return turned.reshape(values.shape).astype(values.dtype)
