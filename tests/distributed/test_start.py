"""The README's first command must run on any number of cores."""

import math

import pytest

from configs import emoji
from diffusionrl_jax.distributed.start import virtual_device_count


@pytest.mark.parametrize(
    ("cores", "expected"), [(1, 1), (2, 2), (3, 2), (6, 4), (8, 8), (14, 8), (128, 16)]
)
def test_virtual_devices_are_a_power_of_two(cores, expected):
    assert virtual_device_count(cores) == expected


@pytest.mark.parametrize("cores", range(1, 33))
def test_main_job_divides_over_the_devices_of_any_machine(cores):
    config, devices = emoji.get_config(), virtual_device_count(cores)
    batches = [(config.batch_size, task.group_size) for task in config.tasks.values()]
    batches += [(chosen.images, chosen.group_size) for chosen in config.evaluation.sets.values()]
    for images, group in batches:
        assert images % math.lcm(devices, group) == 0
