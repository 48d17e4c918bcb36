"""The README's first command must run on any number of cores."""

import math

import jax
import pytest

from configs import emoji
from diffusionrl_jax.distributed import start
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


def test_programs_are_kept_where_the_user_says_or_in_the_cache(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", "gs://mine")
        start.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == "gs://mine"
        monkeypatch.setenv("DIFFUSIONRL_JAX_CACHE", str(tmp_path))
        jax.config.update("jax_compilation_cache_dir", None)
        start.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
