"""What the interceptors change and what they must not, against diffusers' own modules."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers.models.attention_flax import FlaxAttention
from diffusers.models.unets.unet_2d_blocks_flax import FlaxCrossAttnDownBlock2D

from diffusionrl_jax.models.interceptors import dot_product_attention, interception


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


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-5), actual, expected
    )


def test_rematerialisation_changes_no_value(block, plain):
    values, program = block(remat="blocks")
    plain_values, plain_program = plain
    # One residual block and one transformer block.
    assert program.count("prevent_cse=") - plain_program.count("prevent_cse=") == 2
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
    with nn.intercept_methods(dot_product_attention):
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
    with nn.intercept_methods(dot_product_attention):
        ours = apply(half, params, hidden)
    assert ours.dtype == jnp.bfloat16
    assert jnp.mean(jnp.abs(ours - exact)) < jnp.mean(jnp.abs(stock - exact))


@pytest.mark.parametrize("option", [{"remat": "everything"}, {"convolution": "fast"}])
def test_unknown_options(option):
    with pytest.raises(ValueError, match="is not one of"), interception(**option):
        pass
