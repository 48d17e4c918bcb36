"""Random parameters, against Flax's own initialisers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.models.parameters import random_parameters


def test_initial_scale_is_flax_default(tiny):
    """Against the standard deviation of `flax.linen.Conv`'s own initialiser."""
    _, params = tiny
    kernel = params["unet"]["down_blocks_1"]["resnets_0"]["conv2"]["kernel"]
    own = nn.initializers.lecun_normal()(jax.random.key(0), kernel.shape)
    assert abs(kernel.std() / own.std() - 1) < 0.02
    assert abs(np.abs(kernel).max() / np.abs(own).max() - 1) < 0.02
    assert np.all(params["vae"]["encoder"]["conv_norm_out"]["scale"] == 1)
    assert np.all(params["vae"]["encoder"]["conv_norm_out"]["bias"] == 0)


def test_layers_are_drawn_with_their_own_fan_in():
    template = {"blocks_0_to_19": {"kernel": jax.ShapeDtypeStruct((20, 64, 64), jnp.float32)}}
    drawn = random_parameters(template, jax.random.key(0))["blocks_0_to_19"]["kernel"]
    np.testing.assert_allclose(drawn.std(axis=(1, 2)), 64**-0.5, rtol=0.1)
