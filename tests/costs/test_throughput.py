"""Throughput on the devices that are there."""

import pytest

from diffusionrl_jax.costs import throughput


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["split", "fused"])
def test_measures(make_config, execution, tmp_path):
    config = make_config(execution=execution)
    result = throughput.measure(config, str(tmp_path), steps=1, profile=str(tmp_path / "trace"))
    rates, seconds = result.rates(), result.seconds
    parts = set(seconds) - {"iteration"}
    assert parts == ({"sample", "score", "prepare", "update"} if execution == "split" else {"step"})
    assert sum(seconds[part] for part in parts) <= seconds["iteration"]
    speed = rates["iteration"]["images_per_second_per_chip"]
    assert speed * seconds["iteration"] * result.devices == pytest.approx(8)
    assert result.compilation_cached < result.compilation
    assert list(tmp_path.glob("trace/**/*.xplane.pb"))
    assert "images/s/chip" in result.markdown()


def result_of(**changes):
    """What was measured of two made-up chips."""
    fields = {
        "model": "a model",
        "device": "a chip",
        "devices": 2,
        "execution": "fused",
        "images": 8,
        "seconds": {"iteration": 2.0},
        "operations": {},
        "peak": None,
        "memory": 0,
        "memory_of": "device",
        "compilation": 2.0,
        "compilation_cached": 1.0,
    }
    return throughput.Throughput(**fields | changes)


@pytest.mark.parametrize(("counted", "cells"), [({"iteration": 4e12}, "1 | 10.0%"), ({}, " | ")])
def test_what_is_not_counted_is_left_out(counted, cells):
    result = result_of(operations=counted, peak=1e13)
    assert f"| iteration | 2.000 | 2.000 | {cells} |" in result.markdown()


def test_a_reward_on_the_host_is_not_counted(make_config):
    config = make_config()
    config.tasks.small.scorer.update(reward="host_reward", path="package.module:function")
    assert throughput._operations(config) == {}


def test_a_microbatch_that_does_not_divide_one_devices_share_is(make_config):
    config = make_config(**{"batch_size": 40, "microbatch.train": 3, "dtype": "bfloat16"})
    assert set(throughput._operations(config)) >= {"sample", "update"}
