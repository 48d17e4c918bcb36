"""What the numbers by which samples are drawn mean, and what they mean where they are left out."""

import dataclasses

import numpy as np
import pytest

from diffusionrl_jax.learning.sampling import Sampling
from tests.algorithms import toy

BATCH, STEPS = 64, 6


@pytest.fixture(scope="module")
def experience():
    made = toy.make("policy_gradient", tasks=2, **{"sampler.steps": STEPS})
    return made.algorithm.experience


def trained(experience, **numbers):
    """The first of each sample's noise group, and the steps that each sample is trained on."""
    numbers = {"seed": 3, "eta": 1.0, "guidance_scale": 1.0, "steps_kept": 2} | numbers
    changed = dataclasses.replace(experience, sampling=Sampling(**numbers))
    return map(np.asarray, changed.trained_steps(1, BATCH))


def test_without_groups_every_sample_is_one(experience):
    firsts, steps = trained(experience)
    np.testing.assert_array_equal(firsts, np.arange(2 * BATCH).reshape(2, BATCH))
    for expected, found in zip(
        (firsts, steps), trained(experience, noise_groups=(1, 1)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    firsts, of_groups = trained(experience, noise_groups=(4, 1))
    np.testing.assert_array_equal(firsts[0], np.arange(BATCH) // 4 * 4)
    np.testing.assert_array_equal(of_groups[0], np.repeat(steps[0, ::4], 4, axis=0))
    np.testing.assert_array_equal(of_groups[1], steps[1])
    # Among all steps, each of which has noise: all pairs of different ones are drawn.
    assert len({frozenset(pair) for pair in steps.reshape(-1, 2)}) == STEPS * (STEPS - 1) // 2


def test_late_steps_are_the_chains_last_in_its_order(experience):
    _, steps = trained(experience, late_steps=3)
    pairs = {tuple(pair) for pair in steps.reshape(-1, 2).tolist()}
    assert pairs == {(3, 4), (3, 5), (4, 5)}


def test_a_method_of_pictures_alone_has_no_samples(experience):
    sampling = dataclasses.replace(experience.sampling, draws=False)
    found = dataclasses.replace(experience, sampling=sampling).sample(None, None, None, 0)
    assert found.steps is found.images is found.text is found.latents is None
