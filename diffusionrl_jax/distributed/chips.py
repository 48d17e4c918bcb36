"""What each kind of accelerator can do at most, from its maker's documentation."""

import dataclasses
import math
import os

import jax

from diffusionrl_jax.mistakes import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip can do at most.

    Attributes:
      operations: floating-point operations per second in bfloat16.
      memory: the bytes of memory that are left to a program. For a TPU this is the number that
        libtpu names when a program does not fit. For a GPU it is three quarters of its memory,
        which JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
      bandwidth: bytes per second between HBM and the chip.
      interconnect: bytes per second out of the chip, and as many into it, over all of its links:
        half of the bidirectional bandwidth in the documentation. None where it is not known.
    """

    operations: float
    memory: float
    bandwidth: float
    interconnect: float | None = None


# By generation, as in a topology's name. The TPUs' numbers are from
# https://cloud.google.com/tpu/docs/v5e, v5p and v6e; v4's six links of 50 GB/s each are from its
# paper, arXiv 2304.01433. The GPUs' are from NVIDIA's data sheets, without sparsity; the links
# between them depend on the machine.
CHIPS = {
    "v4": Chip(275e12, 30.75 * 2**30, 1200e9, 300e9),
    "v5e": Chip(197e12, 15.75 * 2**30, 819e9, 200e9),
    "v5p": Chip(459e12, 95.73 * 2**30, 2765e9, 600e9),
    "v6e": Chip(918e12, 31.24 * 2**30, 1638e9, 400e9),
    "h100-80gb": Chip(989e12, 0.75 * 79.6 * 2**30, 3350e9),
    "h100-80gb-pcie": Chip(756e12, 0.75 * 79.6 * 2**30, 2000e9),
    "a100-40gb": Chip(312e12, 0.75 * 39.4 * 2**30, 1555e9),
    "a100-80gb": Chip(312e12, 0.75 * 79.2 * 2**30, 2039e9),
    "a100-80gb-pcie": Chip(312e12, 0.75 * 79.2 * 2**30, 1935e9),
    "l40s": Chip(362e12, 0.75 * 44.4 * 2**30, 864e9),
    "rtx4090": Chip(165e12, 0.75 * 23.5 * 2**30, 1008e9),
}
TPUS = tuple(name for name in CHIPS if name.startswith("v"))
TYPES = {"v5e": "v5litepod"}
# JAX's `device_kind` of a device that is there -> its name in `CHIPS`.
KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "NVIDIA H100 80GB HBM3": "h100-80gb",
    "NVIDIA H100 PCIe": "h100-80gb-pcie",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-PCIE-40GB": "a100-40gb",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA A100 80GB PCIe": "a100-80gb-pcie",
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 4090": "rtx4090",
}


def of_topology(topology: str) -> Chip:
    """Returns the chip of a topology such as v5e:4x4.

    Raises:
      UserError: the numbers of the topology's generation are not known.
    """
    generation = topology.partition(":")[0]
    if generation not in CHIPS:
        raise UserError(
            f"The peaks of topology {topology!r} are not known: use one of {', '.join(CHIPS)}, "
            "such as v5e:4x4."
        )
    return CHIPS[generation]


def name(topology: str) -> str:
    """Returns a topology's name with the accelerator type under which a slice of it is requested.

    The types of v4 and v5p count cores, of which a chip has two:
    https://cloud.google.com/tpu/docs/v5p.
    """
    generation, _, shape = topology.partition(":")
    chips = math.prod(map(int, shape.split("x")))
    count = 2 * chips if generation in ("v4", "v5p") else chips
    return f"{topology} ({TYPES.get(generation, generation)}-{count})"


def of_device(device) -> Chip | None:
    """Returns the chip of a device that is there, or None if its numbers are not known."""
    return CHIPS.get(KINDS.get(device.device_kind, ""))


def memory_of_device(device) -> float | None:
    """Returns the bytes of memory that a program may take on a device that is there.

    They are the limit that the runtime states or, without one, the number in `CHIPS`; None if that
    is not known either. A CPU device has its share of the machine's memory.
    """
    if device.platform == "cpu":
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return machine / jax.local_device_count(backend="cpu")
    if limit := (device.memory_stats() or {}).get("bytes_limit"):
        return float(limit)
    chip = of_device(device)
    return chip and chip.memory
