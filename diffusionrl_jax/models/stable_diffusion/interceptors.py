"""Adds what diffusers' Flax modules lack, from outside with `flax.linen.intercept_methods`.

The UNet differs silently from PyTorch's in two places (the GELU, an epsilon), UNet and VAE compute
attention with an explicit probability matrix in the compute dtype, and the UNet can neither be
rematerialised nor take several texts for a sample, or latents of a side that it cannot halve. The
modules and the names of their parameters stay diffusers'. Only these calls are replaced.
"""

import contextlib
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from diffusers.models.attention_flax import (
    FlaxAttention,
    FlaxGEGLU,
    FlaxTransformer2DModel,
)
from diffusers.models.resnet_flax import FlaxResnetBlock2D, FlaxUpsample2D
from diffusers.models.unets.unet_2d_blocks_flax import (
    FlaxCrossAttnUpBlock2D,
    FlaxUpBlock2D,
)
from diffusers.models.unets.unet_2d_condition_flax import FlaxUNet2DConditionModel
from diffusers.models.vae_flax import FlaxAttentionBlock
from jax.sharding import Mesh

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.attention import attend, choose
from diffusionrl_jax.models.rematerialisation import POLICIES
from diffusionrl_jax.models.stable_diffusion import convolution as taps
from diffusionrl_jax.models.stable_diffusion.blocks import rematerialisation

CONVOLUTION = ("auto", "xla", "taps")


def check_options(remat: str, convolution: str) -> None:
    """Refuses options that there are not.

    Args:
      remat, convolution: as in `interception`.

    Raises:
      UserError: there is no such option.
    """
    if remat not in POLICIES:
        raise UserError(f"remat {remat!r} is not one of {tuple(POLICIES)}.")
    if convolution not in CONVOLUTION:
        raise UserError(f"convolution {convolution!r} is not one of {CONVOLUTION}.")


@contextlib.contextmanager
def interception(
    remat: str = "none",
    convolution: str = "xla",
    attention: str = "auto",
    mesh: Mesh | None = None,
) -> Iterator[None]:
    """Puts all of this module's changes around the `apply` calls that are traced in this context.

    Args:
      remat: what is computed again for the backward pass. With "none" nothing is. With "blocks" the
        UNet's transformer and residual blocks keep only their inputs, and what the Pallas kernel
        for attention leaves. With "full" they keep their inputs alone, as do the down, middle and
        up blocks that they lie in, whose insides are computed three times.
      convolution: "xla", or "taps" for the kernel gradients of `convolution.py`, which are for
        training on a CPU. "auto" is whichever suits the devices of the mesh, or else JAX's own.
      attention, mesh: "auto", "dot_product", "splash" or "cudnn", and the devices that the program
        is compiled for; see `models/attention.py`.

    Raises:
      UserError: there is no such option, or the attention is not for these devices.
    """
    check_options(remat, convolution)
    interceptors = [
        exact_gelu,
        transformer_epsilon,
        upsampling(),
        float32_attention(choose(attention, mesh), mesh),
    ]
    if convolution == "taps" or convolution == "auto" and _is_cpu(mesh):
        interceptors.append(tap_convolution)
    interceptors.append(rematerialisation(remat))
    # This is the last, and so within rematerialisation: inputs are kept before they are repeated.
    interceptors.append(several_texts)
    with contextlib.ExitStack() as stack:
        for interceptor in interceptors:
            stack.enter_context(nn.intercept_methods(interceptor))
        yield


def _is_cpu(mesh: Mesh | None) -> bool:
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return platform == "cpu"


def _is_call(context: nn.module.InterceptorContext, *kinds: type) -> bool:
    return context.method_name == "__call__" and isinstance(context.module, kinds)


def _set(module: nn.Module, name: str, value) -> None:
    """Sets a field of a module bound for the current `apply` only (Flax freezes modules)."""
    object.__setattr__(module, name, value)


def exact_gelu(next_function, args, kwargs, context):
    """Computes the feed-forward layers' GELU by erf, as PyTorch does; diffusers' Flax uses tanh."""
    module = context.module
    if not _is_call(context, FlaxGEGLU):
        return next_function(*args, **kwargs)
    linear, gate = jnp.split(module.proj(args[0]), 2, axis=-1)
    deterministic = kwargs.get("deterministic", True)
    return module.dropout_layer(
        linear * nn.gelu(gate, approximate=False), deterministic=deterministic
    )


def transformer_epsilon(next_function, args, kwargs, context):
    """Sets the epsilon of the transformers' GroupNorm to 1e-6, as in PyTorch; Flax's is 1e-5."""
    module = context.module
    if _is_call(context, nn.GroupNorm) and isinstance(module.parent, FlaxTransformer2DModel):
        _set(module, "epsilon", 1e-6)
    return next_function(*args, **kwargs)


def upsampling():
    """Returns an interceptor by which the UNet's levels grow to the sizes that they were halved
    from.

    A side that is odd is rounded up where it is halved. PyTorch's UNet then upsamples to the size
    of the skip connection (`upsample_size`), which is the doubled one without its last row or
    column; Flax's always doubles.
    """
    sides = []  # Of each level, the first one's first.

    def interceptor(next_function, args, kwargs, context):
        module = context.module
        if _is_call(context, FlaxUNet2DConditionModel):
            _, _, height, width = args[0].shape
            levels = range(len(module.block_out_channels))
            sides[:] = [(-(-height // 2**level), -(-width // 2**level)) for level in levels]
        elif _is_call(context, FlaxUpsample2D):
            up_block = int(module.path[-2].rpartition("_")[2])  # "up_blocks_0" is the last level's.
            height, width = sides[-2 - up_block]
            states = args[0]
            if (height, width) != (2 * states.shape[1], 2 * states.shape[2]):
                doubled = states.repeat(2, axis=1).repeat(2, axis=2)
                return module.conv(doubled[:, :height, :width])
        return next_function(*args, **kwargs)

    return interceptor


def float32_attention(attention: str, mesh: Mesh | None):
    """Returns an interceptor that computes the UNet's and the VAE's attention with `attend`."""

    def attended(module, hidden_states, context, heads, scale):
        context = hidden_states if context is None else context

        def split(projected):
            return projected.reshape(*projected.shape[:2], heads, -1)

        result = attend(
            split(module.query(hidden_states)),
            split(module.key(context)),
            split(module.value(context)),
            scale=scale,
            attention=attention,
            mesh=mesh,
        )
        return module.proj_attn(result.reshape(*hidden_states.shape[:2], -1))

    def of_unet(module, hidden_states, context=None, deterministic=True):
        result = attended(module, hidden_states, context, module.heads, module.scale)
        return module.dropout_layer(result, deterministic=deterministic)

    def of_vae(module, hidden_states):
        batch, height, width, channels = hidden_states.shape
        tokens = module.group_norm(hidden_states).reshape(batch, height * width, channels)
        scale = (channels // module.num_heads) ** -0.5
        result = attended(module, tokens, None, module.num_heads, scale)
        return result.reshape(hidden_states.shape) + hidden_states

    def interceptor(next_function, args, kwargs, context):
        if _is_call(context, FlaxAttention):
            return of_unet(context.module, *args, **kwargs)
        if _is_call(context, FlaxAttentionBlock):
            return of_vae(context.module, *args, **kwargs)
        return next_function(*args, **kwargs)

    return interceptor


def tap_convolution(next_function, args, kwargs, context):
    """Computes kernel gradients as matrix products; see `convolution.py`."""
    if _is_call(context, nn.Conv):
        _set(context.module, "conv_general_dilated", taps.conv_general_dilated)
    return next_function(*args, **kwargs)


def several_texts(next_function, args, kwargs, context):
    """Lets P rows of text, one after another, share one row of latents and timesteps.

    What comes before the first cross-attention is computed once. There every row is repeated P
    times, and so is, later, whatever meets the repeated rows: a skip connection, the time's
    embedding.
    """

    def transformer(hidden_states, text, **options):
        return next_function(_repeat(hidden_states, text), text, **options)

    def residual_block(hidden_states, time, **options):
        return next_function(hidden_states, _repeat(time, hidden_states), **options)

    def up_block(hidden_states, res_hidden_states_tuple, **options):
        skips = tuple(_repeat(skip, hidden_states) for skip in res_hidden_states_tuple)
        return next_function(hidden_states, res_hidden_states_tuple=skips, **options)

    if _is_call(context, FlaxTransformer2DModel):
        return transformer(*args, **kwargs)
    if _is_call(context, FlaxResnetBlock2D):
        return residual_block(*args, **kwargs)
    # The middle block has a cross-attention: from there on all rows are the text's.
    if _is_call(context, FlaxCrossAttnUpBlock2D, FlaxUpBlock2D):
        return up_block(*args, **kwargs)
    return next_function(*args, **kwargs)


def _repeat(array: jax.Array, like: jax.Array) -> jax.Array:
    """Repeats each row of an array so often that it has as many rows as another."""
    return jnp.repeat(array, len(like) // len(array), axis=0)
