"""Normalisations, against torch's."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from diffusionrl_jax.models import norms

VALUES = np.random.default_rng(0).normal(3, 5, (4, 7, 32)).astype(np.float32)


def test_mean_and_variance_are_torchs():
    theirs = torch.nn.functional.layer_norm(torch.tensor(VALUES), (32,), eps=norms.EPSILON)
    np.testing.assert_allclose(norms.normalise(jnp.asarray(VALUES)), theirs, atol=2e-6)


@pytest.mark.parametrize("epsilon", [norms.EPSILON, 0.1])
def test_the_root_mean_square_is_torchs(epsilon):
    scale = np.linspace(-1, 2, 32, dtype=np.float32)
    theirs = torch.nn.functional.rms_norm(
        torch.tensor(VALUES), (32,), torch.tensor(scale), eps=epsilon
    )
    ours = norms.root_mean_square(scale, jnp.asarray(VALUES), epsilon)
    np.testing.assert_allclose(ours, theirs, atol=3e-6)


def test_half_precision_is_rounded_once():
    """Computed in float32, whose last step alone is rounded, to 8 bits."""
    values = jnp.asarray(VALUES, jnp.bfloat16)
    exact = np.asarray(values, np.float64)
    expected = exact / np.sqrt(np.square(exact).mean(-1, keepdims=True) + norms.EPSILON)
    found = norms.root_mean_square(jnp.ones(32), values)
    assert found.dtype == norms.normalise(values).dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=2**-8)
