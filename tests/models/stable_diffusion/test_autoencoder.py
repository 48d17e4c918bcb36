"""The VAE's sizes, against diffusers' PyTorch class."""

import pytest
import torch
from diffusers import AutoencoderKL, FlaxAutoencoderKL

from diffusionrl_jax.models.parameters import count
from diffusionrl_jax.models.stable_diffusion.autoencoder import (
    QUANTISATION,
    vae_factor,
    vae_template,
)
from tests.models.conftest import VAE


@pytest.mark.parametrize("absent", [(), ("quant_conv",), QUANTISATION])
def test_parameters_are_pytorchs_with_and_without_convolutions_beside_the_latents(absent):
    config = VAE | {f"use_{name}": False for name in absent}
    theirs = AutoencoderKL.from_config(config)
    ours = vae_template(FlaxAutoencoderKL.from_config(config), config)
    assert count(ours) == sum(parameter.numel() for parameter in theirs.parameters())
    assert ours.keys() & set(QUANTISATION) == set(QUANTISATION) - set(absent)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_pixels_along_a_latent(levels):
    config = VAE | {
        "block_out_channels": [16] * levels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    with torch.no_grad():
        encoded = AutoencoderKL.from_config(config).encode(torch.zeros(1, 3, 16, 8))
    _, _, height, width = encoded.latent_dist.mean.shape
    assert (vae_factor(config) * height, vae_factor(config) * width) == (16, 8)
