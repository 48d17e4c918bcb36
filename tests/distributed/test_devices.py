"""The devices of topologies."""

import types

import jax
import pytest

from diffusionrl_jax.distributed.devices import devices_here, devices_of_topology


@pytest.mark.parametrize("topology", ["v5e", "v5e:", "v5e:2xa", "v9:2x2"])
def test_unknown_topologies(topology):
    with pytest.raises(ValueError, match="topology"):
        devices_of_topology(topology)


def test_slices_are_counted(monkeypatch):
    assert devices_here().slices == 1
    of_slice = lambda number: types.SimpleNamespace(
        slice_index=number, device_kind="TPU v6 lite", platform="tpu", memory_stats=lambda: None
    )
    monkeypatch.setattr(jax, "devices", lambda: [of_slice(number // 8) for number in range(16)])
    assert devices_here().slices == 2
