"""What trained reward models are measured by, against a closed form."""

import numpy as np
import pytest

from diffusionrl_jax.emoji_world import reward_evaluation


def test_average_precision_of_a_known_ranking():
    scores, relevant = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    assert reward_evaluation.average_precision(scores, relevant) == pytest.approx((1 + 2 / 3) / 2)
