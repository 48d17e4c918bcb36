"""Classifier-free guidance, against its own formula."""

import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.diffusion.guidance import conditions, guide
from diffusionrl_jax.models.text_encoders import Conditioning


def test_guidance_moves_away_from_the_empty_prompt():
    output = jnp.asarray([[[1.0, 2.0], [0.0, 4.0]]])  # [batch 1, passes 2, 2]
    np.testing.assert_allclose(guide(output, 3.0), [[3.0, -2.0]])
    np.testing.assert_allclose(guide(output[:, :1], 3.0), [[1.0, 2.0]])


def test_conditioning_of_several_arrays_is_stacked_leaf_by_leaf():
    draw = np.random.default_rng(0).standard_normal
    prompts = Conditioning(draw((6, 5, 3)), draw((6, 2)), np.tile(np.arange(6.0), (6, 1)))
    empty = Conditioning(np.zeros((1, 5, 3)), np.zeros((1, 2)), np.arange(6.0)[None])
    guided = conditions(prompts, empty, 3.0)
    assert guided.states.shape == (6, 2, 5, 3)
    np.testing.assert_array_equal(guided.pooled[:, 0], prompts.pooled.astype(np.float32))
    np.testing.assert_array_equal(guided.pooled[:, 1], 0)
    np.testing.assert_array_equal(guided.time_ids[:, 1], prompts.time_ids)
    assert conditions(prompts, empty, 1).states.shape == (6, 1, 5, 3)
