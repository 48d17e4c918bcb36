"""What diffusers' Flax modules lack, added from outside with `flax.linen.intercept_methods`.

The UNet differs silently from PyTorch's in two places (the GELU, an epsilon), computes attention
with an explicit probability matrix in the compute dtype, and cannot be rematerialised. The modules
and their parameter names stay diffusers'; only these calls are replaced.
"""

import contextlib
from collections.abc import Iterator

import flax.linen as nn
import jax
from diffusers.models.attention_flax import (
    FlaxAttention,
    FlaxBasicTransformerBlock,
    FlaxGEGLU,
    FlaxTransformer2DModel,
)
from diffusers.models.resnet_flax import FlaxResnetBlock2D

from diffusionrl_jax.models import convolution as taps

REMATERIALISATION = ("none", "blocks")
CONVOLUTION = ("xla", "taps")
REMATERIALISED_BLOCKS = (FlaxBasicTransformerBlock, FlaxResnetBlock2D)


@contextlib.contextmanager
def interception(remat: str = "none", convolution: str = "xla") -> Iterator[None]:
    """Everything below, for the `apply` calls traced inside this context.

    Args:
      remat: "none", or "blocks": transformer and residual blocks of the UNet keep only their inputs
        for the backward pass.
      convolution: "xla", or "taps": kernel gradients by `models/convolution.py`, for training on
        the CPU inside a scan.

    Raises:
      ValueError: an option that does not exist.
    """
    if remat not in REMATERIALISATION:
        raise ValueError(f"remat {remat!r} is not one of {REMATERIALISATION}.")
    if convolution not in CONVOLUTION:
        raise ValueError(f"convolution {convolution!r} is not one of {CONVOLUTION}.")
    interceptors = [exact_gelu, transformer_epsilon, dot_product_attention]
    if convolution == "taps":
        interceptors.append(tap_convolution)
    if remat == "blocks":
        interceptors.append(rematerialisation())
    with contextlib.ExitStack() as stack:
        for interceptor in interceptors:
            stack.enter_context(nn.intercept_methods(interceptor))
        yield


def _is_call(context: nn.module.InterceptorContext, *kinds: type) -> bool:
    return context.method_name == "__call__" and isinstance(context.module, kinds)


def _set(module: nn.Module, name: str, value) -> None:
    """Sets a field of a module bound for the current `apply` only (Flax freezes modules)."""
    object.__setattr__(module, name, value)


def exact_gelu(next_function, args, kwargs, context):
    """The erf GELU in the feed-forward layers, as in PyTorch; diffusers' Flax uses the tanh one."""
    module = context.module
    if not _is_call(context, FlaxGEGLU):
        return next_function(*args, **kwargs)
    linear, gate = jax.numpy.split(module.proj(args[0]), 2, axis=-1)
    deterministic = kwargs.get("deterministic", True)
    return module.dropout_layer(
        linear * nn.gelu(gate, approximate=False), deterministic=deterministic
    )


def transformer_epsilon(next_function, args, kwargs, context):
    """Epsilon 1e-6 in the transformers' GroupNorm, as in PyTorch; diffusers' Flax has 1e-5."""
    module = context.module
    if _is_call(context, nn.GroupNorm) and isinstance(module.parent, FlaxTransformer2DModel):
        _set(module, "epsilon", 1e-6)
    return next_function(*args, **kwargs)


def dot_product_attention(next_function, args, kwargs, context):
    """The UNet's attention by `jax.nn.dot_product_attention`, whose softmax is float32."""
    if not _is_call(context, FlaxAttention):
        return next_function(*args, **kwargs)
    return _attention(context.module, *args, **kwargs)


def _attention(module, hidden_states, context=None, deterministic=True):
    context = hidden_states if context is None else context

    def heads(projected):
        return projected.reshape(*projected.shape[:2], module.heads, module.dim_head)

    attended = jax.nn.dot_product_attention(
        heads(module.query(hidden_states)),
        heads(module.key(context)),
        heads(module.value(context)),
        scale=module.scale,
    )
    attended = attended.reshape(*hidden_states.shape[:2], module.heads * module.dim_head)
    return module.dropout_layer(module.proj_attn(attended), deterministic=deterministic)


def tap_convolution(next_function, args, kwargs, context):
    """Kernel gradients as matrix products; see `models/convolution.py`."""
    if _is_call(context, nn.Conv):
        _set(context.module, "conv_general_dilated", taps.conv_general_dilated)
    return next_function(*args, **kwargs)


def rematerialisation():
    """An interceptor that recomputes each block in the backward pass."""
    # Inside `nn.remat` the block is called again and intercepted again: this is how it is known.
    within = False

    def interceptor(next_function, args, kwargs, context):
        nonlocal within
        if within or not _is_call(context, *REMATERIALISED_BLOCKS):
            return next_function(*args, **kwargs)

        def call(module, *arguments):
            nonlocal within
            within = True
            try:
                return module(*arguments, **kwargs)
            finally:
                within = False

        return nn.remat(call)(context.module, *args)

    return interceptor
