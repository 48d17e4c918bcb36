"""The tap-wise convolution against XLA's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from diffusionrl_jax.models.stable_diffusion.convolution import conv_general_dilated, convolution
from diffusionrl_jax.models.stable_diffusion.interceptors import tap_convolution

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
CASES = [
    # kernel, strides, padding
    ((3, 3), (1, 1), ((1, 1), (1, 1))),
    ((3, 3), (2, 2), ((1, 1), (1, 1))),
    ((3, 3), (2, 2), ((0, 0), (0, 0))),
    ((3, 3), (1, 2), ((0, 2), (1, 0))),
    ((1, 1), (1, 1), ((0, 0), (0, 0))),
    ((1, 1), (2, 2), ((0, 0), (0, 0))),
    ((3, 2), (2, 1), ((2, 1), (0, 1))),
]


def case(kernel_size, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 2)
    inputs = jax.random.normal(keys[0], (2, 7, 8, 3), dtype)
    kernel = jax.random.normal(keys[1], (*kernel_size, 3, 5), dtype)
    return inputs, kernel


def gradients(function, inputs, kernel):
    def loss(inputs, kernel):
        return jnp.sum(jnp.sin(function(inputs, kernel).astype(jnp.float32)))

    return jax.jit(jax.value_and_grad(loss, (0, 1)))(inputs, kernel)


@pytest.mark.parametrize(("kernel_size", "strides", "padding"), CASES)
def test_gradients_agree_with_xla(kernel_size, strides, padding):
    inputs, kernel = case(kernel_size)

    def ours(inputs, kernel):
        return convolution(inputs, kernel, strides, padding)

    def stock(inputs, kernel):
        return lax.conv_general_dilated(
            inputs, kernel, strides, padding, dimension_numbers=DIMENSIONS
        )

    np.testing.assert_allclose(ours(inputs, kernel), stock(inputs, kernel), atol=1e-5)
    for actual, expected in zip(
        jax.tree.leaves(gradients(ours, inputs, kernel)),
        jax.tree.leaves(gradients(stock, inputs, kernel)),
        strict=True,
    ):
        np.testing.assert_allclose(actual, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.slow
def test_bfloat16_gradients_accumulate_in_float32():
    inputs, kernel = case((3, 3), jnp.bfloat16)
    strides, padding = (1, 1), ((1, 1), (1, 1))
    _, (to_inputs, to_kernel) = gradients(
        lambda x, k: convolution(x, k, strides, padding), inputs, kernel
    )
    _, (_, expected) = gradients(
        lambda x, k: convolution(x, k, strides, padding),
        inputs.astype(jnp.float32),
        kernel.astype(jnp.float32),
    )
    assert to_inputs.dtype == to_kernel.dtype == jnp.bfloat16
    np.testing.assert_allclose(to_kernel.astype(jnp.float32), expected, atol=0.2, rtol=0.05)


@pytest.mark.parametrize("module", [
    nn.Conv(5, (3, 3), strides=2, padding="SAME"),
    nn.Conv(5, (3, 3), padding=((1, 1), (1, 1))),
    nn.Conv(6, (3, 3), kernel_dilation=2),
    nn.Conv(6, (3, 3), feature_group_count=3),
    nn.Conv(5, (1, 1), padding="VALID", use_bias=False),
])  # fmt: skip
def test_intercepted_layer_in_a_scan(module):
    """Two steps of gradient descent inside a scan, as an update loop runs them."""
    inputs, _ = case((3, 3))
    params = module.init(jax.random.key(2), inputs)

    def loss(params):
        return jnp.mean(jnp.square(module.apply(params, inputs) - 1))

    def step(params, _):
        value, gradient = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), value

    def train(params):
        return lax.scan(step, params, length=2)

    expected = jax.jit(train)(params)
    with nn.intercept_methods(tap_convolution):
        actual = jax.jit(lambda params: train(params))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, expected)


def test_other_ranks_go_to_lax():
    inputs = jnp.ones((1, 6, 2))
    kernel = jnp.ones((3, 2, 4))
    output = conv_general_dilated(
        inputs, kernel, (1,), "SAME", (1,), (1,), ("NWC", "WIO", "NWC"), feature_group_count=1
    )
    np.testing.assert_allclose(output[0, :, 0], [4, 6, 6, 6, 6, 4])
