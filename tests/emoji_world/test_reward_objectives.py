"""The losses that the emoji world's reward models are trained by."""

import math

import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.emoji_world import reward_objectives


def test_preference_loss_of_two_candidates():
    scores, qualities = jnp.array([[0.7, -0.2]]), jnp.array([[1.0, 0.5]])
    preferred = 1 / (1 + math.exp(-reward_objectives.PREFERENCE_SHARPNESS * 0.5))
    predicted = 1 / (1 + math.exp(-0.9))
    expected = -preferred * math.log(predicted) - (1 - preferred) * math.log(1 - predicted)
    loss = reward_objectives.preference_loss(scores, qualities)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_preference_loss_is_least_at_scores_proportional_to_quality():
    qualities = jnp.array([[1.0, 0.4, 0.0]])
    best = reward_objectives.preference_loss(
        reward_objectives.PREFERENCE_SHARPNESS * qualities, qualities
    )
    for scores in (qualities, 8 * qualities, -qualities):
        assert reward_objectives.preference_loss(scores, qualities) > best
