"""What the denoiser is shown in each update, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.learning import draws
from diffusionrl_jax.learning.examples import (
    Examples,
    by_update,
    concatenate,
    noise_anew,
    side_by_side,
)
from diffusionrl_jax.models.folders.published import NOISE_SCHEDULE


@pytest.mark.slow
def test_a_group_shares_its_noise_and_time_and_no_more():
    """Where a method compares errors, which are of other sizes at other times."""
    process, clean = make_process(NOISE_SCHEDULE, 10), jnp.zeros((2, 6, 4, 4, 4))
    sources, places = draws.first_of_group((3, 2), 6), jnp.arange(12).reshape(2, 6)
    found = noise_anew(process, clean, (1.0, 1.0), 0, 0, 2, places=places, sources=sources)
    times, noise = found.times, found.own["target"]
    for update, size in zip(range(4), (3, 3, 2, 2), strict=True):
        groups = np.asarray(noise[update]).reshape(6 // size, size, -1)
        np.testing.assert_array_equal(groups, np.repeat(groups[:, :1], size, axis=1))
        assert len(np.unique(groups[:, 0, 0])) == len(groups)
        of_groups = np.asarray(times[update]).reshape(-1, size)
        assert (of_groups == of_groups[:, :1]).all()
        assert len(np.unique(of_groups)) == len(of_groups)
    assert len(np.unique(np.asarray(noise)[:, 0, 0, 0, 0])) == 4


def test_samples_are_noised_along_the_flow():
    """In a straight line to noise of their own, at times of their own."""
    schedule = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    process = make_process(schedule, 10)
    clean = np.random.default_rng(5).standard_normal((2, 6, 4, 4, 4)).astype(np.float32)
    places = jnp.arange(12).reshape(2, 6)
    noised = jax.jit(lambda clean: noise_anew(process, clean, (1.0, 1.0), 0, 0, 3, places=places))
    found = noised(clean)
    clean = clean[np.asarray(found.text)]
    noise = np.asarray(found.own["target"]) + clean
    times = np.asarray(found.times)[..., None, None, None]
    assert times.dtype == np.float32 and len(np.unique(times)) == times.size
    np.testing.assert_allclose(found.latents, (1 - times) * clean + times * noise, atol=1e-5)
    correlation = np.corrcoef(noise.reshape(36, -1))
    assert np.abs(correlation - np.eye(36)).max() < 0.5


def test_steps_come_task_by_task():
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    expected = [array[task, :, step] for task in range(2) for step in range(4)]
    np.testing.assert_array_equal(by_update(jnp.asarray(array)), expected)


def test_one_objectives_examples_come_task_by_task():
    def part(*numbers):
        latents, whole = jnp.float32(numbers)[:, None], jnp.zeros(len(numbers), int)
        return Examples(latents, latents, whole, jnp.ones(len(numbers)), whole, own={})

    found = side_by_side((part(1, 2), part(10, 11, 20, 21)), 2)
    np.testing.assert_array_equal(found.latents[:, 0], [1, 10, 11, 2, 20, 21])


def test_what_an_objective_lacks_is_zeros():
    def part(updates, place, own):
        zeros = jnp.zeros((updates, 3))
        whole = jnp.full(updates, place)
        arguments = zeros + place, zeros, whole, jnp.ones(updates), whole
        return Examples(*arguments, own=own, objectives=(place,))

    advantages, target = jnp.ones((2, 3)), jnp.full((1, 3, 4), 5, jnp.int32)
    found = concatenate([part(2, 0, {"advantages": advantages}), part(1, 2, {"target": target})])
    assert found.objectives == (0, 2)
    np.testing.assert_array_equal(found.objective, [0, 0, 2])
    np.testing.assert_array_equal(found.latents[:, 0], [0, 0, 2])
    np.testing.assert_array_equal(found.own["advantages"], [[1] * 3] * 2 + [[0] * 3])
    np.testing.assert_array_equal(found.own["target"], np.repeat([0, 0, 5], 12).reshape(3, 3, 4))
    assert found.own["target"].dtype == jnp.int32
