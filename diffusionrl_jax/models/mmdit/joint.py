"""The transformer of Stable Diffusion 3 and 3.5 (2403.03206), without its parameters.

The names of the parameters are those of SD3Transformer2DModel of PyTorch's diffusers, whose output
it is checked against.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.models.mmdit import layers
from diffusionrl_jax.models.mmdit.blocks import Attend, block_shapes, joint_block
from diffusionrl_jax.models.mmdit.layers import linear_shapes
from diffusionrl_jax.models.parameters import Parameters, parts, shape
from diffusionrl_jax.models.stacks import run_block, scan_blocks, stack_name, stacked_shapes
from diffusionrl_jax.models.text_encoders import Conditioning

BLOCKS = "transformer_blocks"
# The parts of the network before and after its blocks.
ENTRY = ("pos_embed", "time_text_embed", "context_embedder")


@dataclasses.dataclass(frozen=True, eq=False)
class JointTransformer:
    """The sizes of the transformer. Its methods are pure functions of its parameters.

    Attributes:
      layers: the number of blocks.
      heads, head_size: of each attention; their product is the network's width.
      channels: the channels of the latents.
      patch_size: the rows, and the columns, of latents that one token stands for.
      text_width, pooled_width: of what it is conditioned on.
      normalises: whether queries and keys are divided by the root of their mean square.
      dual: the numbers of the blocks in which the picture's tokens also attend to themselves alone.
      positions: the embedding of each token's place, [tokens, width]. It is no parameter: it is
        neither trained nor averaged.
      dtype: the dtype in which it computes.
      remat: what of the blocks is computed again for the backward pass, as in `run_block`.
    """

    layers: int
    heads: int
    head_size: int
    channels: int
    patch_size: int
    text_width: int
    pooled_width: int
    normalises: bool
    dual: frozenset[int]
    positions: np.ndarray
    dtype: Any = jnp.float32
    remat: str = "none"

    @property
    def width(self) -> int:
        """How many numbers a token has."""
        return self.heads * self.head_size

    @property
    def runs(self) -> dict[str, range]:
        """The runs of equal blocks before the last one, by the names of their stacks."""
        found = {}
        alike = itertools.groupby(range(self.layers - 1), key=lambda layer: layer in self.dual)
        for _, run in alike:
            first, *others = run
            run = range(first, first + len(others) + 1)
            found[stack_name(BLOCKS, run[0], run[-1])] = run
        return found

    @property
    def last(self) -> str:
        """The name of the last block."""
        return f"{BLOCKS}_{self.layers - 1}"

    def template(self) -> dict[str, Any]:
        """Returns the shapes of the parameters."""
        width, size = self.width, self.patch_size
        return {
            "pos_embed": {
                "proj": {"kernel": shape(size, size, self.channels, width), "bias": shape(width)}
            },
            "time_text_embed": layers.condition_shapes(width, self.pooled_width),
            "context_embedder": linear_shapes(self.text_width, width),
            **{
                name: stacked_shapes(self._block_shapes(run[0]), len(run))
                for name, run in self.runs.items()
            },
            self.last: self._block_shapes(self.layers - 1),
            "norm_out": {"linear": linear_shapes(width, 2 * width)},
            "proj_out": linear_shapes(width, size * size * self.channels),
        }

    def _block_shapes(self, layer: int) -> dict[str, Any]:
        return block_shapes(
            self.heads,
            self.head_size,
            normalises=self.normalises,
            is_dual=layer in self.dual,
            is_last=layer == self.layers - 1,
        )

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
          key_bias: numbers that are added to the logits of the text's tokens wherever these are
            attended to, float32 [tokens]; None means zeros.

        Returns:
          float32 [n * P, channels, rows, columns].
        """
        passes = len(text.states) // len(latents)

        def enter(params, inputs):
            latents, times, states, pooled = inputs
            cut = layers.patches(latents.astype(self.dtype), self.patch_size)
            picture = layers.patch_embedding(params["pos_embed"]["proj"], cut)
            picture += self.positions.astype(self.dtype)
            picture = jnp.repeat(picture, passes, axis=0)
            pooled = pooled.astype(self.dtype)
            condition = layers.embed_condition(params["time_text_embed"], times, pooled)
            words = layers.linear(params["context_embedder"], states.astype(self.dtype))
            return picture, words, condition

        inputs = (latents, times, text.states, text.pooled)
        picture, words, condition = run_block(enter, parts(params, ENTRY), inputs)
        attend = functools.partial(attend, scale=self.head_size**-0.5)
        if key_bias is not None:
            key_bias = np.concatenate([np.zeros(picture.shape[1], np.float32), key_bias])

        def block(params, streams):
            jointly = functools.partial(attend, key_bias=key_bias)
            return joint_block(params, streams, condition, self.heads, jointly, attend)

        streams = (picture, words)
        for name in self.runs:
            streams = scan_blocks(block, params[name], streams, self.remat)
        picture, _ = run_block(block, params[self.last], streams, self.remat)
        cut = run_block(layers.leave, parts(params, layers.EXIT), (picture, condition))
        return layers.join_patches(cut, self.patch_size, latents.shape[1:]).astype(jnp.float32)
