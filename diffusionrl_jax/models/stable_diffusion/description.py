"""Describes how large a Stable Diffusion is, without reading its weights.

The sizes come from its folder's configs and from the headers of its weights' files.
"""

import math
from collections.abc import Mapping
from typing import Any

from diffusionrl_jax.data.files import resolve
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.description import Description
from diffusionrl_jax.models.folders import hub, published, tensor_files
from diffusionrl_jax.models.folders.networks import NETWORKS, NETWORKS_XL, SECOND, STEMS
from diffusionrl_jax.models.stable_diffusion import arithmetic
from diffusionrl_jax.models.stable_diffusion.autoencoder import vae_factor
from diffusionrl_jax.models.stable_diffusion.configs import read_configs
from diffusionrl_jax.models.stable_diffusion.model import latent_size


def describe(name: str, size: tuple[int, int] | None = None) -> Description:
    """Returns the sizes of a model in a folder, or of a published checkpoint that is not here.

    Args:
      name: a folder, here or on the hub, as `config.model` names it.
      size: the height and width of the pictures in pixels; None means the UNet's own size.

    Raises:
      UserError, FileNotFoundError: there is no such model, or it is not supported.
    """
    configs, counted = _open(name)
    unet, vae = configs["unet"], configs["vae"]
    texts = [configs[name] for name in ("text_encoder", SECOND) if name in configs]
    tokens = texts[0].get("max_position_embeddings", 77)
    sides = latent_size(configs, size)
    latent_pixels = math.prod(sides)
    pixels = latent_pixels * vae_factor(vae) ** 2
    return Description(
        denoiser=counted["unet"],
        vae=counted["vae"],
        text_encoder=counted["text_encoder"],
        largest_encoder=counted["text_encoder"],
        network=arithmetic.network(unet, tokens, sides),
        latent=unet["in_channels"] * latent_pixels,
        image=3 * pixels,
        text=tokens * unet["cross_attention_dim"],
        decoded=lambda itemsize: arithmetic.decoder(vae, pixels, itemsize),
    )


def _open(name: str) -> tuple[Mapping[str, Any], Mapping[str, int]]:
    """Returns a model's configs, and the number of parameters of each of its networks.

    XL's second text encoder is counted to the first.
    """
    if not name:
        raise UserError("config.model is empty: name a diffusers folder or a hub id.")
    short = published.short_name(name)
    if short is not None and not resolve(name, "config.model").exists():
        return published.CONFIGS[short], published.PARAMETERS[short]
    folder = hub.locate(name)
    configs = read_configs(folder)
    names = NETWORKS_XL if SECOND in configs else NETWORKS
    stored = tensor_files.open_networks({folder / name: STEMS[name] for name in names})
    counted = {
        name: sum(math.prod(tensor.shape) for tensor in tensors.values())
        for name, tensors in stored.items()
    }
    counted["text_encoder"] += counted.pop(SECOND, 0)
    return configs, counted
