"""What is held of an iteration, and what of a batch is never brought to the devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusionrl_jax.learning.iteration import Batch, Samples
from diffusionrl_jax.rewards.host_reward import Questions


@pytest.mark.parametrize("keeps", [False, True])
def test_once_samples_are_scored_their_images_are_dropped(keeps):
    samples = Samples("steps", jnp.ones((1, 2, 4, 4, 3)), "text", jnp.ones((1, 2, 8)), keeps)
    held = samples.trained_on()
    assert held.images is None and (held.steps, held.text) == ("steps", "text")
    assert (held.latents is samples.latents) if keeps else (held.latents is None)
    assert samples.images is not None


def test_samples_that_keep_their_latents_do_in_a_program_too():
    held = jax.jit(Samples.trained_on)(Samples(None, jnp.ones(3), None, jnp.arange(3), True))
    np.testing.assert_array_equal(held.latents, [0, 1, 2])
    assert held.keeps_latents and held.images is None


def test_questions_stay_on_the_host():
    questions = (Questions(["a cat"], [{"index": 0}]),)
    batch = Batch(np.zeros((1, 1, 4), np.int32), ({},), None, questions=questions)
    assert len(jax.tree.leaves(batch)) == 1
    placed = jax.device_put(batch)
    assert isinstance(placed.input_ids, jax.Array) and placed.questions is questions
    without = dataclasses.replace(batch, questions=())
    assert jax.tree.structure(without) != jax.tree.structure(batch)
