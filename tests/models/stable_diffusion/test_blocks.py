"""What is computed again for the backward pass, against diffusers' blocks without it."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from diffusers.models.resnet_flax import FlaxResnetBlock2D

from diffusionrl_jax.models.stable_diffusion.blocks import rematerialisation
from tests.models.stable_diffusion.test_interceptors import assert_close, checkpoints


@pytest.mark.parametrize(("policy", "again"), [("none", 0), ("blocks", 1), ("full", 1)])
def test_a_block_is_computed_again_where_the_policy_says_so(policy, again):
    """Traced alone: by Flax's module, twice as many convolutions where it is."""
    module, shape = FlaxResnetBlock2D(in_channels=32, out_channels=32), jax.ShapeDtypeStruct
    inputs = shape((1, 2, 2, 32), jnp.float32), shape((1, 16), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), *inputs)

    def loss(params, *inputs):
        with nn.intercept_methods(rematerialisation(policy)):
            return module.apply(params, *inputs).sum()

    program = str(jax.make_jaxpr(jax.grad(loss))(params, *inputs))
    assert checkpoints(program) == again


@pytest.mark.slow
def test_every_policy_gives_the_same_gradient_of_the_unet(tiny_2):
    """Also of the levels that take keyword arguments, and nested."""
    model, params = tiny_2
    keys = jax.random.split(jax.random.key(0), 2)
    latents = jax.random.normal(keys[0], (2, *model.latent_shape))
    text = jax.random.normal(keys[1], (2, 5, 32))
    timesteps = jnp.array([3, 700])

    def gradient(remat):
        chosen = dataclasses.replace(model, remat=remat)

        def loss(params):
            output = chosen.denoise(params, latents, timesteps, text)
            return jnp.mean(jnp.square(output)), output

        traced = jax.jit(jax.grad(loss, has_aux=True)).trace(params["unet"])
        return traced.lower().compile()(params["unet"]), checkpoints(str(traced.jaxpr))

    plain, none = gradient("none")
    blocks, of_blocks = gradient("blocks")
    full, of_levels = gradient("full")
    # Two levels down, one in the middle, two up; within them, their blocks twice.
    assert none == 0 < of_blocks
    assert of_levels == 2 * of_blocks + 5
    assert_close(blocks, plain)
    assert_close(full, plain)
