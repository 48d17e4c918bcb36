"""The layers that the transformers are made of, as functions of their parameters.

Each computes in the dtype of what it is given; norms, and what enters a sine, in float32. The
shapes of a layer's parameters stand beside it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.models.norms import normalise
from diffusionrl_jax.models.parameters import Parameters, shape

# The embedding of a time is made of so many sines and cosines, whose slowest has a period of
# 2 pi times this.
TIME_WIDTH, SLOWEST = 256, 10_000
# Networks were trained on times of 0 to 1000.
TIME_SCALE = 1000.0
MLP_RATIO = 4
# The parts that turn tokens into latents.
EXIT = ("norm_out", "proj_out")


def linear_shapes(inputs: int, outputs: int) -> dict[str, Any]:
    """Returns the shapes of a linear layer's parameters."""
    return {"kernel": shape(inputs, outputs), "bias": shape(outputs)}


def linear(params: Parameters, values: jax.Array) -> jax.Array:
    """Applies a linear layer to the last axis."""
    # As one matrix product of rank 2, whose gradients XLA computes without a transposed copy.
    rows = values.reshape(-1, values.shape[-1])
    result = rows @ params["kernel"].astype(values.dtype) + params["bias"].astype(values.dtype)
    return result.reshape(*values.shape[:-1], -1)


def embedder_shapes(inputs: int, width: int) -> dict[str, Any]:
    """Returns the shapes of the parameters of `embed`."""
    return {"linear_1": linear_shapes(inputs, width), "linear_2": linear_shapes(width, width)}


def embed(params: Parameters, values: jax.Array) -> jax.Array:
    """Applies two linear layers with a SiLU between them."""
    return linear(params["linear_2"], jax.nn.silu(linear(params["linear_1"], values)))


def condition_shapes(width: int, pooled_width: int, is_guided: bool = False) -> dict[str, Any]:
    """Returns the shapes of the parameters of `embed_condition`."""
    shapes = {
        "timestep_embedder": embedder_shapes(TIME_WIDTH, width),
        "text_embedder": embedder_shapes(pooled_width, width),
    }
    return shapes | ({"guidance_embedder": embedder_shapes(TIME_WIDTH, width)} if is_guided else {})


def embed_condition(
    params: Parameters, times: jax.Array, pooled: jax.Array, guidance: float | None = None
) -> jax.Array:
    """Embeds what the modulations follow from.

    Args:
      params: those of `condition_shapes`.
      times: [n], in [0, 1].
      pooled: the pooled states of texts, [n * P, width'], P for each time, in the compute dtype.
      guidance: the scale of the guidance that the network was distilled with; None if it was not.

    Returns:
      The embedding after the SiLU that comes before each modulation, [n * P, width].
    """

    def of_numbers(name, numbers):
        return embed(params[name], sinusoids(TIME_SCALE * numbers).astype(pooled.dtype))

    embedded = of_numbers("timestep_embedder", times)
    if guidance is not None:
        embedded += of_numbers("guidance_embedder", jnp.full(1, guidance, jnp.float32))
    embedded = jnp.repeat(embedded, len(pooled) // len(times), axis=0)
    return jax.nn.silu(embedded + embed(params["text_embedder"], pooled))


def mlp_shapes(width: int) -> dict[str, Any]:
    """Returns the shapes of the parameters of `mlp`, under PyTorch's names."""
    inner = MLP_RATIO * width
    return {"net_0": {"proj": linear_shapes(width, inner)}, "net_2": linear_shapes(inner, width)}


def mlp(params: Parameters, values: jax.Array) -> jax.Array:
    """Applies two linear layers with a GELU, by tanh, between them."""
    inner = jax.nn.gelu(linear(params["net_0"]["proj"], values), approximate=True)
    return linear(params["net_2"], inner)


def modulate(values: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Scales and shifts tokens [n, tokens, width] by numbers [n, width] that follow from the time.

    Adaptive layer normalisation: Peebles and Xie, 2212.09748.
    """
    return values * (1 + scale[:, None]) + shift[:, None]


def modulation(params: Parameters, condition: jax.Array, parts: int) -> list[jax.Array]:
    """Returns the shifts, scales and gates [n, width] that a layer makes of its condition.

    Args:
      params: those of the linear layer.
      condition: the embedding of time and text, after its SiLU, [n, width].
      parts: how many there are.
    """
    return jnp.split(linear(params, condition), parts, axis=-1)


def modulate_last(params: Parameters, values: jax.Array, condition: jax.Array) -> jax.Array:
    """Normalises tokens and modulates them, where nothing comes after: the scale is first."""
    scale, shift = modulation(params, condition, 2)
    return modulate(normalise(values), shift, scale)


def leave(params: Parameters, inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns the patches that a picture's tokens stand for, from the parameters `EXIT`.

    Args:
      params: the parameters by their names.
      inputs: the tokens after the last block, [n, tokens, width], and the condition, [n, width].
    """
    picture, condition = inputs
    picture = modulate_last(params["norm_out"]["linear"], picture, condition)
    return linear(params["proj_out"], picture)


def split_heads(values: jax.Array, count: int) -> jax.Array:
    """Returns tokens [n, tokens, width] as [n, tokens, heads, head size]."""
    return values.reshape(*values.shape[:2], count, -1)


def merge_heads(values: jax.Array) -> jax.Array:
    """Returns heads [n, tokens, heads, head size] as tokens [n, tokens, width]."""
    return values.reshape(*values.shape[:2], -1)


def sinusoids(values: jax.Array) -> jax.Array:
    """Returns the cosines, then the sines, of multiples of numbers [n]: float32 [n, 256]."""
    # Constants, of which each is right to the last digit: at 1000 an ulp moves a sine by 6e-5.
    half = TIME_WIDTH // 2
    frequencies = np.float32(np.exp(-np.log(SLOWEST) * np.arange(half) / half))
    angles = values.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


# The axes of cut latents, [n, channels, patch row, row, patch column, column], in the order of a
# convolution's kernel [row, column, channel], and in that of FLUX, [channel, row, column].
KERNEL_ORDER, PACKED_ORDER = (3, 5, 1), (1, 3, 5)


def patches(latents: jax.Array, size: int, order: tuple[int, int, int] = KERNEL_ORDER) -> jax.Array:
    """Cuts latents [n, channels, rows, columns] into square patches, row by row.

    Args:
      latents: the latents.
      size: the number of rows, and of columns, of a patch.
      order: how a patch's numbers are ordered, `KERNEL_ORDER` or `PACKED_ORDER`.

    Returns:
      [n, patches, size * size * channels].
    """
    count, channels, rows, columns = latents.shape
    cut = latents.reshape(count, channels, rows // size, size, columns // size, size)
    return cut.transpose(0, 2, 4, *order).reshape(count, -1, size * size * channels)


def join_patches(
    cut: jax.Array,
    size: int,
    latent_shape: tuple[int, ...],
    order: tuple[int, int, int] = KERNEL_ORDER,
) -> jax.Array:
    """Puts patches together to latents; the inverse of `patches`.

    Args:
      cut: [n, patches, size * size * channels].
      size, order: as in `patches`.
      latent_shape: the latents' (channels, rows, columns).
    """
    channels, rows, columns = latent_shape
    lengths = {1: channels, 3: size, 5: size}
    ordered = cut.reshape(-1, rows // size, columns // size, *(lengths[axis] for axis in order))
    return ordered.transpose(np.argsort((0, 2, 4, *order))).reshape(-1, *latent_shape)


def patch_embedding(params: Mapping[str, Any], cut: jax.Array) -> jax.Array:
    """Embeds patches by the kernel [rows, columns, in, out] of a convolution as wide as a patch."""
    kernel = params["kernel"]
    return linear({**params, "kernel": kernel.reshape(-1, kernel.shape[-1])}, cut)
