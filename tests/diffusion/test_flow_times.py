"""The times of flows, against PyTorch diffusers' schedulers."""

import numpy as np
import pytest

from tests.diffusion.test_rectified_flow import make_ours, make_theirs

# Every change by itself, and what FLUX's pipeline hands to its scheduler.
CHANGES = {
    "stable_diffusion_3": {},
    "no_shift": {"shift": 1.0},
    "dynamic": {"use_dynamic_shifting": True},
    "linear": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "terminal": {"shift_terminal": 0.02},
    "few_timesteps": {"num_train_timesteps": 100},
    "flux": {"use_dynamic_shifting": True, "timestep_spacing": "trailing"},
    "flux_schnell": {"shift": 1.0, "timestep_spacing": "trailing"},
}
STEPS = [4, 10, 28, 40]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("steps", STEPS)
def test_times_are_those_of_diffusers(change, steps):
    theirs, ours = make_theirs(change, steps), make_ours(change, steps)
    assert ours.steps == steps
    # Both end in float32.
    np.testing.assert_allclose(ours.levels, theirs.sigmas.numpy(), rtol=3e-7)
    training = theirs.config.num_train_timesteps
    np.testing.assert_allclose(training * ours.times, theirs.timesteps.numpy(), rtol=3e-7)


def test_every_chain_starts_from_noise_alone():
    """A shift below 1 rounds 1 to something beside it, which the noise of a step is divided by."""
    for shift in np.arange(1, 100) / 100:
        assert make_ours({"shift": float(shift)}, 4, noise="sde").unit_std.max() < 10


def test_the_least_time_is_shifted_twice():
    """The grid of ten steps that SD 3's pipeline was seen to walk."""
    expected = [1, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0]
    np.testing.assert_allclose(make_ours({}, 10).levels, expected, atol=5e-5)
