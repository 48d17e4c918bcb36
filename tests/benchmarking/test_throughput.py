"""Throughput on the devices that are there."""

import pytest

from diffusionrl_jax.benchmarking import throughput


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["split", "fused"])
def test_measures(make_config, execution, tmp_path):
    config = make_config(execution=execution)
    result = throughput.measure(config, str(tmp_path), steps=1, profile=str(tmp_path / "trace"))
    rates, seconds = result.rates(), result.seconds
    parts = set(seconds) - {"iteration"}
    assert parts == ({"sample", "score", "update"} if execution == "split" else {"step"})
    assert sum(seconds[part] for part in parts) <= seconds["iteration"]
    speed = rates["iteration"]["images_per_second_per_chip"]
    assert speed * seconds["iteration"] * result.devices == pytest.approx(8)
    assert result.compilation_cached < result.compilation
    assert list(tmp_path.glob("trace/**/*.xplane.pb"))
    assert "images/s/chip" in result.markdown()
