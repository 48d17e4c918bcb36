"""What the compiler does not count is read from its text."""

import jax
import jax.numpy as jnp
import pytest

from diffusionrl_jax.benchmarking import compiled
from diffusionrl_jax.models.attention import attend

TEXT = """
  %splash_mha_fwd_residuals.1 = (f32[512,128]{1,0:T(8,128)}, f32[512,64]{1,0}, bf16[5,4096,64]{2,1,0}, f32[5,4096,128]{2,1,0}) custom-call(%a), custom_call_target="tpu_custom_call"
  %splash_mha_dq_no_residuals.1 = (f32[512,64]{1,0}, bf16[5,4096,64]{2,1,0}) custom-call(%b)
  %splash_mha_dkv_no_residuals.1 = (f32[512,64]{1,0}, bf16[2,5,4096,64]{2,1,0}) custom-call(%c)
"""  # noqa: E501


def test_operations_of_kernels():
    # Two products of [4096, 64] and [64, 4096] forward, three and four backward; five heads.
    product = 2 * 5 * 4096 * 4096 * 64
    assert compiled.kernel_operations(TEXT) == [2 * product, 3 * product, 2 * 4 * product]


def test_splash_compiles_for_a_tpu_that_is_not_there():
    pytest.importorskip("libtpu")
    mesh = compiled.chip("v5e:2x2")
    # Head size 40 is Stable Diffusion 1.5's, not a multiple of anything that the chip has.
    arguments = [jax.ShapeDtypeStruct((1, 1024, 8, 40), jnp.bfloat16)] * 3

    def loss(*arguments):
        return jnp.sum(attend(*arguments, scale=40**-0.5, mesh=mesh).astype(jnp.float32))

    cost = compiled.compile_cost(jax.grad(loss, (0, 1, 2)), mesh, *arguments)
    assert cost.kernels == 3
    assert cost.operations >= 18 * 8 * 1024 * 1024 * 40
    # One matrix of probabilities would be 16 MiB.
    assert cost.temporaries < 8 * 2**20
