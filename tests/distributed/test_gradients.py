"""Means over the devices, against those of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusionrl_jax.distributed.gradients import mean_over_devices
from diffusionrl_jax.distributed.mesh import (
    REPLICATED_BYTES,
    make_mesh,
    parameter_sharding,
)


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_mean_over_devices_is_that_of_the_batch_and_split_like_its_parameters(fsdp):
    mesh = make_mesh(fsdp)
    rows = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    kernel = jnp.ones((REPLICATED_BYTES // 16, 4, 3))

    def function(whole, share):
        gradient = jnp.broadcast_to(whole * share.mean(0), kernel.shape)
        return {"large": gradient, "small": gradient[0, 0]}, {
            "mean": share.mean(),
            "most": share.max(),
        }

    params = {"large": kernel, "small": kernel[0, 0]}
    reductions = {"mean": "mean", "most": "max"}
    mean = mean_over_devices(function, params, mesh, reductions)
    gradients, scalars = jax.jit(mean)(2.0, rows)
    for gradient in gradients.values():
        mean = np.broadcast_to(2 * rows.mean(0), gradient.shape)
        np.testing.assert_allclose(gradient, mean, rtol=1e-5)
    np.testing.assert_allclose(scalars["mean"], rows.mean(), rtol=1e-5)
    assert scalars["most"] == rows.max()
    expected = parameter_sharding(mesh, params)
    assert expected["large"].is_fully_replicated == (fsdp == 1)
    for name, gradient in gradients.items():
        assert gradient.sharding.is_equivalent_to(expected[name], gradient.ndim)
