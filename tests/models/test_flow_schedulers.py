"""Schedulers of flows, against diffusers' class; what would draw other pictures is refused."""

import inspect

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusionrl_jax.models import flow_schedulers


def test_left_out_fields_have_the_class_s_own_defaults():
    parameters = inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters
    for full in (
        flow_schedulers.with_flow_defaults({}),
        flow_schedulers.with_flow_defaults(dict.fromkeys(flow_schedulers.DEFAULTS)),
    ):
        of_pipelines = full.pop("timestep_spacing")
        assert of_pipelines == flow_schedulers.TIMESTEP_SPACINGS[0]
        for field, value in full.items():
            # None means 0 to the class, as to what is computed here.
            assert value == (parameters[field].default or value * 0), field
    assert set(flow_schedulers.REFUSED) <= parameters.keys()
    stated = {"shift": 3.0, "shift_terminal": None, "_class_name": "Other"}
    found = flow_schedulers.with_flow_defaults(stated)
    assert (found["shift"], found["shift_terminal"], found["_class_name"]) == (3.0, 0.0, "Other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_karras_sigmas": True}, "use_karras_sigmas True is not supported"),
        ({"use_exponential_sigmas": True}, "use_exponential_sigmas True is not supported"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas True is not supported"),
        ({"invert_sigmas": True}, "invert_sigmas True is not supported"),
        ({"stochastic_sampling": True}, "stochastic_sampling True is not supported"),
        ({"time_shift_type": "square"}, "time_shift_type 'square' is not one of exponential"),
        ({"shift": "large"}, "shift is 'large', and must be a finite number above 0"),
        ({"shift_terminal": 1}, "shift_terminal is 1, and must be a number above 0"),
        ({"max_image_seq_len": 256}, "are both 256, and must differ"),
    ],
)
def test_refuses_what_it_would_get_wrong(changes, message):
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    flow_schedulers.check_flow_scheduler(config, "a file")
    with pytest.raises(ValueError, match=f"a file: .*{message}"):
        flow_schedulers.check_flow_scheduler(config | changes, "a file")
