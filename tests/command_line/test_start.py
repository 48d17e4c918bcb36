"""The README's first command must run on any number of cores, and several must find each other."""

import math

import jax
import pytest

from configs import emoji_policy_gradient
from diffusionrl_jax.command_line import start
from diffusionrl_jax.command_line.start import (
    HEARTBEAT_TIMEOUT,
    join_processes,
    virtual_device_count,
)


@pytest.mark.parametrize(
    ("cores", "expected"), [(1, 1), (2, 2), (3, 2), (6, 4), (8, 8), (14, 8), (128, 16)]
)
def test_virtual_devices_are_a_power_of_two(cores, expected):
    assert virtual_device_count(cores) == expected


@pytest.mark.parametrize("cores", range(1, 33))
def test_main_job_divides_over_the_devices_of_any_machine(cores):
    config, devices = emoji_policy_gradient.get_config(), virtual_device_count(cores)
    batches = [(config.batch_size, task.group_size) for task in config.tasks.values()]
    batches += [(chosen.images, chosen.group_size) for chosen in config.evaluation.sets.values()]
    for images, group in batches:
        assert images % math.lcm(devices, group) == 0


@pytest.fixture
def joined(monkeypatch):
    """The arguments that JAX is called with."""
    calls = []

    def initialize(*arguments, **options):
        calls.append((arguments, options))

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return calls


def test_flags_are_handed_to_jax_and_without_them_it_looks_for_a_cluster(joined):
    join_processes("host:1", 2, 1)
    join_processes(None, None, None)
    options = {"heartbeat_timeout_seconds": HEARTBEAT_TIMEOUT}
    assert joined == [(("host:1", 2, 1), options), ((None, None, None), options)]


def test_one_process_joins_nobody(joined):
    join_processes(None, 1, None)
    assert not joined


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1", None, 0), "give --process_count, too"),
        ((None, 4, None), "give --coordinator_address, --process_index, too"),
        ((None, None, 0), "give --coordinator_address, --process_count, too"),
        (("host:1", 2, 2), "--process_index=2 must be below --process_count=2"),
    ],
)
def test_flags_that_do_not_fit(joined, arguments, message):
    with pytest.raises(ValueError, match=message):
        join_processes(*arguments)
    assert not joined


def test_a_cluster_that_is_described_wrongly_is_not_one_process(monkeypatch):
    def initialize(*arguments, **options):
        raise ValueError("unsupported worker-network-endpoints format")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match="worker-network-endpoints"):
        join_processes(None, None, None)


def test_programs_are_kept_where_the_user_says_or_in_the_cache(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", "gs://mine")
        start.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == "gs://mine"
        monkeypatch.setenv("DIFFUSIONRL_JAX_CACHE", str(tmp_path))
        jax.config.update("jax_compilation_cache_dir", None)
        start.use_compilation_cache(str(tmp_path / "run"))
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")
        jax.config.update("jax_compilation_cache_dir", None)
        start.use_compilation_cache("gs://bucket/run")
        assert jax.config.jax_compilation_cache_dir == "gs://bucket/run/cache/compiled"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
