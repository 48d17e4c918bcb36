"""What the interceptors change and what they must not, against diffusers' own modules."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers.models.attention_flax import FlaxAttention
from diffusers.models.unets.unet_2d_blocks_flax import FlaxCrossAttnDownBlock2D
from diffusers.models.vae_flax import FlaxAttentionBlock

from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.models.interceptors import float32_attention, interception


@pytest.fixture(scope="module")
def block():
    """A part of the UNet that has everything: its parameters, and a function to compile."""
    module = FlaxCrossAttnDownBlock2D(in_channels=32, out_channels=32, num_attention_heads=2)
    keys = jax.random.split(jax.random.key(3), 4)
    arguments = (
        jax.random.normal(keys[0], (2, 4, 4, 32)),
        jax.random.normal(keys[1], (2, 128)),
        jax.random.normal(keys[2], (2, 5, 16)),
    )
    params = jax.jit(module.init)(keys[3], *arguments)

    def gradient_and_program(**options):
        def loss(params):
            with interception(**options):
                output, _ = module.apply(params, *arguments)
            return jnp.mean(output**2), output

        traced = jax.jit(jax.grad(loss, has_aux=True)).trace(params)
        return traced.lower().compile()(params), str(traced.jaxpr)

    return gradient_and_program


@pytest.fixture(scope="module")
def plain(block):
    return block()


def checkpoints(program):
    """How many modules a program's gradient recomputes."""
    return program.count("prevent_cse=")


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-5), actual, expected
    )


# One residual block and one transformer block; with the level around them, these twice.
@pytest.mark.parametrize(("remat", "added"), [("blocks", 2), ("full", 5)])
def test_rematerialisation_changes_no_value(block, plain, remat, added):
    values, program = block(remat=remat)
    plain_values, plain_program = plain
    assert checkpoints(program) - checkpoints(plain_program) == added
    assert_close(values, plain_values)


def test_tap_convolution_changes_no_value(block, plain):
    values, program = block(convolution="taps")
    plain_values, plain_program = plain
    assert "custom_vjp" not in plain_program
    assert program.count("conv_general_dilated[") < plain_program.count("conv_general_dilated[")
    assert_close(values, plain_values)


def test_both_together(block, plain):
    values, _ = block(remat="blocks", convolution="taps")
    assert_close(values, plain[0])


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


def apply(module, *arguments):
    """Compiled anew each time: JAX's cache does not see the interceptors."""
    return jax.jit(lambda *arguments: module.apply(*arguments))(*arguments)


@pytest.mark.parametrize("split_head_dim", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_attention_agrees_with_diffusers(split_head_dim, cross):
    module = FlaxAttention(query_dim=24, heads=3, dim_head=8, split_head_dim=split_head_dim)
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (2, 9, 24))
    context = jax.random.normal(keys[1], (2, 5, 24)) if cross else None
    params = jax.jit(module.init)(keys[2], hidden, context)
    expected = apply(module, params, hidden, context)
    with nn.intercept_methods(float32_attention("dot_product", None)):
        actual = apply(module, params, hidden, context)
    np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_attention_softmax_is_float32():
    """In bfloat16 our output lies closer to the float32 one than diffusers' does."""
    keys = jax.random.split(jax.random.key(0), 2)
    hidden = 4 * jax.random.normal(keys[0], (2, 64, 32))
    full = FlaxAttention(32, 2, 16)
    half = FlaxAttention(32, 2, 16, dtype=jnp.bfloat16)
    params = jax.jit(full.init)(keys[1], hidden)
    exact = apply(full, params, hidden)
    stock = apply(half, params, hidden)
    with nn.intercept_methods(float32_attention("dot_product", None)):
        ours = apply(half, params, hidden)
    assert ours.dtype == jnp.bfloat16
    assert jnp.mean(jnp.abs(ours - exact)) < jnp.mean(jnp.abs(stock - exact))


def test_attention_of_the_vae_agrees_with_diffusers():
    module = FlaxAttentionBlock(channels=24, num_groups=4)
    keys = jax.random.split(jax.random.key(0), 2)
    hidden = jax.random.normal(keys[0], (2, 3, 4, 24))
    params = jax.jit(module.init)(keys[1], hidden)
    expected = apply(module, params, hidden)
    with nn.intercept_methods(float32_attention("dot_product", None)):
        actual = apply(module, params, hidden)
    np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_splash_is_reached_through_the_modules():
    """1024 tokens in self-attention go to the kernel, and the result is the same."""
    module = FlaxAttention(query_dim=16, heads=2, dim_head=8)
    keys = jax.random.split(jax.random.key(0), 2)
    hidden = jax.random.normal(keys[0], (1, 1024, 16))
    params = jax.jit(module.init)(keys[1], hidden)
    expected = apply(module, params, hidden)
    with interception(attention="splash", mesh=make_mesh(devices=jax.devices()[:1])):
        program = str(jax.make_jaxpr(module.apply)(params, hidden))
        actual = apply(module, params, hidden)
    assert "pallas_call" in program
    np.testing.assert_allclose(actual, expected, atol=2e-6)


@pytest.mark.parametrize(
    "option", [{"remat": "everything"}, {"convolution": "fast"}, {"attention": "flash"}]
)
def test_unknown_options(option):
    with pytest.raises(ValueError, match="is not one of"), interception(**option):
        pass
