"""The mathematics' operations are those that XLA counts before it optimises."""

import jax
import jax.numpy as jnp
import pytest

from diffusionrl_jax.costs.mathematics import operations


def convolve(pictures, kernel, **options):
    return jax.lax.conv_general_dilated(
        pictures, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


PICTURES = jax.ShapeDtypeStruct((2, 13, 13, 6), jnp.float32)
KERNEL = jax.ShapeDtypeStruct((3, 3, 6, 4), jnp.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (1, 1), "padding": "SAME"},
        {"window_strides": (2, 2), "padding": ((0, 1), (1, 1))},
        {"window_strides": (1, 2), "padding": "VALID", "rhs_dilation": (2, 1)},
        {"window_strides": (1, 1), "padding": ((1, 2), (1, 1)), "lhs_dilation": (2, 2)},
    ],
)
@pytest.mark.parametrize("gradient", [False, True])
def test_convolutions(options, gradient):
    function = lambda *arguments: convolve(*arguments, **options)
    if gradient:
        product = function
        function = jax.grad(lambda *arguments: product(*arguments).sum(), (0, 1))
    counted = operations(function, PICTURES, KERNEL)
    told = jax.jit(function).lower(PICTURES, KERNEL).cost_analysis()["flops"]
    # XLA also counts what is done element by element: at most a sum over all there is.
    assert counted <= told <= counted + 4 * 2 * 26 * 26 * 6


def test_grouped_convolution():
    kernel = jax.ShapeDtypeStruct((3, 3, 2, 9), jnp.float32)
    function = lambda *arguments: convolve(
        *arguments, window_strides=(1, 1), padding="VALID", feature_group_count=3
    )
    assert operations(function, PICTURES, kernel) == 2 * 2 * 11 * 11 * 9 * 2 * 9


def test_loops_branches_and_rematerialisation():
    matrix = jax.ShapeDtypeStruct((16, 16), jnp.float32)
    product = 2 * 16**3

    def function(matrix):
        step = lambda carry, _: (jax.checkpoint(jnp.matmul)(carry, matrix), None)
        result, _ = jax.lax.scan(step, matrix, length=5)
        small, large = lambda x: x @ x, lambda x: x @ x @ x
        return jax.lax.cond(result.sum() > 0, small, large, result)

    assert operations(function, matrix) == (5 + 2) * product
