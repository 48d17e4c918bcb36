"""Schedulers of folders, against diffusers' classes."""

import inspect

import diffusers
import pytest

from diffusionrl_jax.models import schedulers


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_left_out_fields_have_the_class_s_own_defaults(name):
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    ours = schedulers.with_defaults({}, name)
    of_noise = ("num_train_timesteps", *schedulers.BETAS, "prediction_type", "clip_sample")
    for field in of_noise:
        expected = parameters[field].default if field in parameters else False
        assert ours[field] == expected, field
    ddim = inspect.signature(diffusers.DDIMScheduler.__init__).parameters
    for field in set(ours) - set(of_noise):
        assert ours[field] == ddim[field].default, field
