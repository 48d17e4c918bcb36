"""The schedule against PyTorch diffusers' DDIMScheduler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusionrl_jax.diffusion.ddim import make_ddim
from diffusionrl_jax.models.folders.published import NOISE_SCHEDULE

CHANGES = {
    "stable_diffusion": {},
    "no_offset": {"steps_offset": 0},
    "alpha_to_one": {"set_alpha_to_one": True, "steps_offset": 0},
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
    "linear_betas": {"beta_schedule": "linear"},
    "cosine_betas": {"beta_schedule": "squaredcos_cap_v2"},
    "trained_betas": {"trained_betas": np.geomspace(1e-4, 2e-2, 1000).tolist()},
    "few_timesteps": {"num_train_timesteps": 100},
}
TOLERANCE = 1e-5


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("steps", [1, 4, 20, 50])
def test_chain_is_that_of_diffusers(change, steps):
    theirs = DDIMScheduler(**NOISE_SCHEDULE | change)
    theirs.set_timesteps(steps)
    ours = make_ddim(NOISE_SCHEDULE | change, steps)
    timesteps = theirs.timesteps.numpy()
    assert ours.steps == steps
    np.testing.assert_array_equal(ours.times, timesteps)
    alpha_bar = theirs.alphas_cumprod.numpy()
    np.testing.assert_allclose(ours.training_alpha_bar, alpha_bar, rtol=TOLERANCE)
    np.testing.assert_allclose(ours.alpha_bar, alpha_bar[timesteps], rtol=TOLERANCE)
    variances = [
        theirs._get_variance(t, t - theirs.config.num_train_timesteps // steps).item()
        for t in timesteps
    ]
    # A variance of 0 makes the step's log-prob meaningless.
    assert ours.stochastic_steps == np.count_nonzero(variances)
    assert all(variances[: ours.stochastic_steps])


ZERO_TERMINAL = NOISE_SCHEDULE | {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_zero_terminal_chain_is_that_of_diffusers(steps, beta_schedule):
    config = ZERO_TERMINAL | {"beta_schedule": beta_schedule}
    theirs = DDIMScheduler(**config)
    theirs.set_timesteps(steps)
    ours = make_ddim(config, steps)
    np.testing.assert_array_equal(ours.times, theirs.timesteps.numpy())
    # Relative to what the last but one is, both round too.
    alpha_bar = theirs.alphas_cumprod.numpy()
    np.testing.assert_allclose(ours.training_alpha_bar, alpha_bar, rtol=TOLERANCE, atol=1e-8)
    assert ours.training_alpha_bar[-1] == ours.alpha_bar[0] == alpha_bar[-1] == 0


STEPS = {
    "clip": {"clip_sample": True},
    "zero": ZERO_TERMINAL,
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "sample": {"prediction_type": "sample"},
}


@pytest.mark.parametrize("change", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_steps_are_those_of_diffusers(change, eta):
    config = NOISE_SCHEDULE | {"clip_sample_range": 0.7} | change
    theirs = DDIMScheduler(**config)
    theirs.set_timesteps(5)
    ours = make_ddim(config, 5)
    output, latents, noise = np.random.default_rng(4).standard_normal((3, 1, 4, 8, 8), np.float32)
    for index, time in enumerate(theirs.timesteps):
        tensors = [torch.from_numpy(array) for array in (output, latents, noise)]
        expected = theirs.step(
            tensors[0], time, tensors[1], eta=eta, variance_noise=tensors[2] if eta else None
        ).prev_sample
        step = ours.step(jnp.asarray(output), jnp.asarray(latents), jnp.array([index]), eta)
        np.testing.assert_allclose(step.mean + step.std * noise, expected.numpy(), atol=TOLERANCE)


def test_missing_fields_have_the_defaults_of_diffusers():
    theirs = DDIMScheduler(clip_sample=False)
    theirs.set_timesteps(10)
    ours = make_ddim({}, 10)
    np.testing.assert_array_equal(ours.times, theirs.timesteps.numpy())
    np.testing.assert_allclose(
        ours.training_alpha_bar, theirs.alphas_cumprod.numpy(), rtol=TOLERANCE
    )
    assert ours.previous_alpha_bar[-1] == theirs.final_alpha_cumprod.item() == 1


def test_trailing_has_as_many_steps_as_asked():
    # 1000 / 61 is rounded so that NumPy's range has 62 members.
    process = make_ddim(NOISE_SCHEDULE | {"timestep_spacing": "trailing"}, 61)
    assert process.steps == 61
    assert process.times[0] == 999
    assert process.times[-1] == 15


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_noise_and_target_are_those_of_diffusers(prediction_type):
    config = NOISE_SCHEDULE | {"prediction_type": prediction_type}
    theirs = DDIMScheduler(**config)
    process = make_ddim(config, 20)
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 3, 4, 8, 8)).astype(np.float32)
    timesteps = np.array([0, 500, 999], np.int32)
    tensors = [torch.from_numpy(array) for array in (clean, noise, timesteps)]
    np.testing.assert_allclose(
        process.noise(clean, noise, timesteps),
        theirs.add_noise(*tensors[:2], tensors[2].long()).numpy(),
        atol=TOLERANCE,
    )
    expected = tensors[1 if prediction_type == "epsilon" else 0]
    if prediction_type == "v_prediction":
        expected = theirs.get_velocity(*tensors[:2], tensors[2].long())
    target = process.target(jnp.asarray(clean), jnp.asarray(noise), timesteps)
    np.testing.assert_allclose(target, expected.numpy(), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("change", "steps", "message"),
    [
        ({"beta_schedule": "sigmoid"}, 10, "beta_schedule 'sigmoid'.*squaredcos_cap_v2"),
        ({"timestep_spacing": "even"}, 10, "timestep_spacing 'even'.*trailing"),
        ({"prediction_type": "flow"}, 10, "prediction_type 'flow'.*sample"),
        ({"trained_betas": [0.1, 0.2]}, 2, "trained_betas has 2 numbers, and must have 1000"),
        ({"trained_betas": [0.1, 1]}, 2, "trained_betas is .*, and must be a list of numbers"),
        ({"thresholding": True}, 10, "thresholding True is not supported"),
        ({"rescale_betas_zero_snr": True}, 10, "rescale_betas_zero_snr is for .*'v_prediction'"),
        ({"use_flow_sigmas": True}, 10, "use_flow_sigmas True is not supported"),
        ({"timestep_type": "continuous"}, 10, "timestep_type 'continuous' is not supported"),
        ({"beta_start": "small"}, 10, "beta_start is 'small', and must be a number above 0"),
        ({"beta_end": 1}, 10, "beta_end is 1, and must be a number above 0 and below 1"),
        ({"num_train_timesteps": 0}, 10, "num_train_timesteps is 0, and must be a whole number"),
        ({"steps_offset": -1}, 10, "steps_offset is -1, and must be a whole number of 0 or more"),
        ({"set_alpha_to_one": "no"}, 10, "set_alpha_to_one is 'no', and must be true or false"),
        ({}, 0, "between 1 and 1000, not 0"),
        ({}, 1001, "between 1 and 1000, not 1001"),
        ({}, 1000, "first timestep is 1000.*fewer steps"),
    ],
)
def test_refuses_what_it_would_get_wrong(change, steps, message):
    with pytest.raises(ValueError, match=message):
        make_ddim(NOISE_SCHEDULE | change, steps)


@pytest.mark.parametrize("shares", [(0.9996, 1.0), (0.0, 0.0004), (0.5, 0.5001)])
def test_shares_with_no_timestep_between_them_have_the_nearest(shares):
    process = make_ddim(NOISE_SCHEDULE, 4)
    drawn = {int(process.draw_time(jax.random.key(seed), *shares)) for seed in range(8)}
    assert drawn == {min(round(shares[0] * 1000), 999)}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_clean_latents_come_back(prediction_type):
    process = make_ddim(NOISE_SCHEDULE | {"prediction_type": prediction_type}, 20)
    rng = np.random.default_rng(3)
    clean, noise = rng.standard_normal((2, 3, 4, 8, 8)).astype(np.float32)
    times = np.array([0, 300, 700], np.int32)
    noisy = process.noise(clean, noise, times)
    target = process.target(jnp.asarray(clean), jnp.asarray(noise), times)
    np.testing.assert_allclose(process.clean(target, noisy, times), clean, atol=1e-5)
