"""Chips by their names, against those that Google's and NVIDIA's documentation gives."""

import types

import jax
import pytest

from diffusionrl_jax.distributed import chips


@pytest.mark.parametrize(
    ("topology", "requested"),
    [
        # https://cloud.google.com/tpu/docs: v4 and v5p count cores, v5e and v6e chips.
        ("v4:2x2x1", "v4-8"),
        ("v4:4x4x4", "v4-128"),
        ("v5p:2x2x4", "v5p-32"),
        ("v5e:2x4", "v5litepod-8"),
        ("v5e:16x16", "v5litepod-256"),
        ("v6e:8x8", "v6e-64"),
    ],
)
def test_a_slice_has_the_name_by_which_it_is_requested(topology, requested):
    assert chips.name(topology) == f"{topology} ({requested})"
    assert chips.of_topology(topology) is chips.CHIPS[topology.partition(":")[0]]
    assert topology.partition(":")[0] in chips.TPUS


def test_an_unknown_generation_is_refused():
    with pytest.raises(ValueError, match="topology 'v9:2x2' are not known: use one of v4, v5e"):
        chips.of_topology("v9:2x2")


def device(kind, platform="gpu", **statistics):
    return types.SimpleNamespace(
        device_kind=kind, platform=platform, memory_stats=lambda: statistics or None
    )


@pytest.mark.parametrize(
    ("kind", "teraflops", "gigabytes", "bandwidth"),
    [
        ("TPU v5 lite", 197, 16, 819),
        ("TPU v4", 275, 32, 1200),
        ("TPU v5p", 459, 95, 2765),
        ("TPU v6 lite", 918, 32, 1638),
        ("NVIDIA H100 80GB HBM3", 989, 80, 3350),
        ("NVIDIA H100 PCIe", 756, 80, 2000),
        ("NVIDIA A100-SXM4-40GB", 312, 40, 1555),
        ("NVIDIA A100-PCIE-40GB", 312, 40, 1555),
        ("NVIDIA A100-SXM4-80GB", 312, 80, 2039),
        ("NVIDIA A100 80GB PCIe", 312, 80, 1935),
    ],
)
def test_a_device_is_known_by_its_kind(kind, teraflops, gigabytes, bandwidth):
    chip = chips.of_device(device(kind))
    assert chip.operations == teraflops * 1e12 and chip.bandwidth == bandwidth * 1e9
    # Of a GPU's memory JAX takes three quarters; of a TPU's a part is the runtime's.
    share = 0.75 if kind.startswith("NVIDIA") else 1
    assert chip.memory / 2**30 == pytest.approx(share * gigabytes, rel=0.04)
    assert chips.memory_of_device(device(kind)) == chip.memory
    assert chips.memory_of_device(device(kind, bytes_limit=123)) == 123.0


def test_a_device_of_an_unknown_kind():
    assert chips.of_device(device("NVIDIA H900")) is None
    assert chips.memory_of_device(device("NVIDIA H900")) is None
    assert chips.memory_of_device(device("NVIDIA H900", bytes_limit=5)) == 5.0


def test_cpu_devices_share_the_machines_memory():
    with open("/proc/meminfo") as file:
        (kilobytes,) = (int(line.split()[1]) for line in file if line.startswith("MemTotal:"))
    found = [chips.memory_of_device(each) for each in jax.local_devices(backend="cpu")]
    assert sum(found) == pytest.approx(1024 * kilobytes, rel=1e-3)
