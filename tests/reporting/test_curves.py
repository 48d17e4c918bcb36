"""A report's curves."""

import numpy as np

from diffusionrl_jax.reporting import curves


def test_the_interval_of_a_reward_is_that_of_its_prompts(run, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "plot", lambda title, found, *rest: drawn.extend(found) or "")
    curves.reward_plots([run])
    (curve,) = drawn
    # 320 samples in groups of 4.
    np.testing.assert_allclose(curve.high - curve.y, 1.96 * 0.5 / 80**0.5)
    np.testing.assert_array_equal(curve.x, np.arange(1, 9))
