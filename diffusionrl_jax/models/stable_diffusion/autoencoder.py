"""The VAE between pictures and latents, FlaxAutoencoderKL, whichever denoiser it serves.

Its functions are to be traced under `interceptors.interception`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusionrl_jax.models.parameters import Parameters, apply

# Convolutions of one pixel beside the latents, which newer VAEs have none of.
QUANTISATION = ("quant_conv", "post_quant_conv")


def vae_factor(config: Mapping[str, Any]) -> int:
    """Returns how many pixels lie along a side of one of a latent's, by the VAE's config."""
    return 2 ** (len(config["block_out_channels"]) - 1)


def vae_template(vae: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the shapes of a VAE's parameters.

    Args:
      vae: the FlaxAutoencoderKL.
      config: the contents of its config.json.
    """
    absent = {name for name in QUANTISATION if config.get(f"use_{name}") is False}
    shapes = jax.eval_shape(vae.init_weights, jax.random.key(0))
    return {name: tree for name, tree in shapes.items() if name not in absent}


def without_quantisation(next_function, args, kwargs, context):
    """An interceptor: a convolution beside the latents that has no parameters changes nothing."""
    module = context.module
    is_one = isinstance(module, nn.Conv) and module.name in QUANTISATION
    if is_one and context.method_name == "__call__" and not module.has_variable("params", "kernel"):
        return args[0]
    return next_function(*args, **kwargs)


def encode(
    vae: nn.Module, params: Parameters, images: jax.Array, scaling_factor: float
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean and the standard deviation of images' latents.

    Args:
      vae: the FlaxAutoencoderKL.
      params: its parameters.
      images: [n, height, width, 3] in [0, 1].
      scaling_factor: the number that both are multiplied by.

    Returns:
      float32 [n, channels, height', width'] each.
    """
    pixels = (2 * images - 1).transpose(0, 3, 1, 2)
    with nn.intercept_methods(without_quantisation):
        posterior = apply(vae, {"params": params}, pixels, method=vae.encode).latent_dist
    mean, std = (
        scaling_factor * moment.astype(jnp.float32).transpose(0, 3, 1, 2)
        for moment in (posterior.mean, posterior.std)
    )
    return mean, std


def decode(
    vae: nn.Module, params: Parameters, latents: jax.Array, scaling_factor: float
) -> jax.Array:
    """Returns the images that latents decode to.

    Args:
      vae: the FlaxAutoencoderKL.
      params: its parameters.
      latents: [n, channels, height, width], multiplied by the scaling factor.
      scaling_factor: the number that they are divided by.

    Returns:
      float32 [n, height', width', 3], clipped to [0, 1].
    """
    # Channels come last: given them first, FlaxAutoencoderKL guesses the layout by the width.
    unscaled = latents.transpose(0, 2, 3, 1) / scaling_factor
    with nn.intercept_methods(without_quantisation):
        decoded = apply(vae, {"params": params}, unscaled, method=vae.decode)
    return jnp.clip((decoded.sample.astype(jnp.float32).transpose(0, 2, 3, 1) + 1) / 2, 0, 1)
