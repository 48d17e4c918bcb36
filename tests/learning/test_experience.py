"""Which steps samples are trained on, and what a chain is outside of its window of noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.learning import draws
from diffusionrl_jax.learning.experience import Experience

TASKS, BATCH, STEPS, WINDOW = 2, 8, 6, 2


@pytest.fixture(scope="module")
def setup(build):
    process = make_process(
        {"_class_name": "FlowMatchEulerDiscreteScheduler"}, STEPS, noise="sde", eta=0.7
    )
    setup = build(steps=STEPS, batch_size=BATCH, guidance_scale=1.0, eta=0.7)
    return setup.changed(process=process)


def windowed(setup, **changes):
    experience = setup.algorithm.experience
    sampling = {"window": WINDOW, "window_groups": (4, 1), "steps_kept": WINDOW} | changes
    numbers = dataclasses.replace(experience.sampling, **sampling)
    return dataclasses.replace(experience, sampling=numbers)


def test_samples_are_trained_within_their_windows(setup):
    experience = windowed(setup)
    _, trained = experience.trained_steps(3, BATCH)
    windows = np.asarray(experience.windows(3, BATCH))
    np.testing.assert_array_equal(np.sort(trained), windows[..., None] + np.arange(WINDOW))
    eta = np.asarray(experience.eta(3, BATCH))
    assert eta.shape == (TASKS, BATCH, STEPS)
    np.testing.assert_array_equal(eta.sum(2), np.float32(0.7) * WINDOW)
    assert (np.take_along_axis(eta, np.asarray(trained), axis=2) == np.float32(0.7)).all()


@dataclasses.dataclass(frozen=True, eq=False)
class Watched(Experience):
    """Keeps every step of the chain, to be looked at."""

    def trained_steps(self, step, batch):
        everything = jnp.tile(jnp.arange(STEPS), (TASKS, batch, 1))
        return draws.first_of_group((1, 1), batch), everything


@pytest.mark.slow
def test_outside_of_windows_the_chain_is_the_ode(setup):
    """The steps before, within and after a window, as the process itself takes them."""
    experience = Watched(**vars(windowed(setup)))
    samples = jax.jit(experience.sample)(setup.params, setup.frozen, setup.batch.input_ids, 3)
    process, model = experience.process, experience.model
    rows = lambda array: jnp.asarray(np.asarray(array).reshape(-1, *array.shape[2:]))
    latents, following = rows(samples.steps.latents), rows(samples.steps.following)
    start = np.asarray(experience.windows(3, BATCH)).ravel()
    # There is one pass of the denoiser for a sample.
    text = jax.tree.map(lambda array: rows(array)[:, 0], samples.text)
    denoise = jax.jit(model.denoise)
    for index in range(STEPS):
        places = jnp.full(TASKS * BATCH, index)
        output = denoise(setup.params, latents[:, index], process.times[places], text)
        still = process.step(output, latents[:, index], places, 0.0).mean
        off = np.abs(following[:, index] - still).max(axis=(1, 2, 3))
        inside = (start <= index) & (index < start + WINDOW)
        np.testing.assert_allclose(off[~inside], 0, atol=1e-5)
        assert (off[inside] > 0.05).all()


@pytest.mark.parametrize(
    ("window", "kept"), [(1, 2), (STEPS, 2)], ids=["smaller than trained", "larger than noisy"]
)
def test_a_window_holds_what_is_trained_and_has_noise(setup, window, kept):
    with pytest.raises(
        ValueError, match=f"window={window} must be between .*={kept} and 5: of the 6"
    ):
        windowed(setup, window=window, steps_kept=kept)


def test_which_step_a_group_is_trained_on_depends_on_no_division(build):
    """Eight devices have one group of two of each of two parts."""
    batch, parts, found = 32, 2, []
    for devices in (1, 8):
        setup = build(1, batch, devices=devices, branches=parts, timesteps_per_iteration=1)
        experience = setup.changed(noise_groups=(2,)).algorithm.experience
        firsts, trained = experience.trained_steps(3, batch)
        found.append(np.asarray(trained))
        of_parts = np.asarray(experience.branch_steps(3))[0]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(np.asarray(firsts)[0], np.arange(batch) // 2 * 2)
    groups = found[0][0, :, 0].reshape(-1, 2)
    np.testing.assert_array_equal(groups[:, 0], np.tile(of_parts, batch // (2 * parts)))
    np.testing.assert_array_equal(groups[:, 1], groups[:, 0])


def test_more_timesteps_than_noisy_steps(build):
    with pytest.raises(ValueError, match="timesteps_per_iteration=3 must be between 0 and 2"):
        build(steps=3, timesteps_per_iteration=3, scheduler={"set_alpha_to_one": True}).algorithm  # noqa: B018
