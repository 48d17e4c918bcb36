"""The gradient's root mean square against NumPy."""

import numpy as np

from diffusionrl_jax.learning.summary import gradient_rms


def test_the_least_gradient_is_told():
    gradients = np.random.default_rng(0).standard_normal((3, 400)) * [[1e-3], [2.0], [1e-7]]
    norms = np.linalg.norm(gradients, axis=1)
    rms = np.sqrt(np.square(gradients).mean(axis=1))
    np.testing.assert_allclose(gradient_rms(norms, 400, 0.0), rms[2], rtol=1e-6)
    np.testing.assert_allclose(gradient_rms(norms[1:2], 400, 1.0), 1 / 20, rtol=1e-6)
    # An update without a gradient, as of rewards that are all the same, is no small gradient.
    np.testing.assert_allclose(gradient_rms(np.array([0.0, norms[0]]), 400, 0.0), rms[0])
    assert gradient_rms(np.zeros(2), 400, 1.0) == 0
