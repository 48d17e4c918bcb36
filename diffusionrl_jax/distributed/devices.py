"""Describes the devices that an experiment runs on, or is planned for."""

import dataclasses
import math

import jax
import numpy as np

from diffusionrl_jax.distributed import chips, processes
from diffusionrl_jax.distributed.mesh import slice_of
from diffusionrl_jax.mistakes import UserError


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices that an experiment runs on.

    Attributes:
      count: the number of chips.
      kind: the name of their kind.
      platform: "tpu", "gpu" or "cpu".
      memory: the bytes that each leaves to a program; None if that is not known.
      slices: how many slices, of as many chips each, they are.
    """

    count: int
    kind: str
    platform: str
    memory: float | None
    slices: int = 1

    def __str__(self) -> str:
        return f"{self.count} {self.kind} chip{'s' if self.count > 1 else ''}"


def devices_here() -> Devices:
    """Returns the devices of this program. Every process is told of the least memory of any."""
    first = jax.devices()[0]
    found = [chips.memory_of_device(device) for device in jax.local_devices()]
    told = [limit for limit in found if limit is not None]
    least = min(told) if len(told) == len(found) else math.nan
    least = float(processes.gather(np.array(least)).min())
    known = None if math.isnan(least) else least
    platform = "gpu" if first.platform in ("cuda", "rocm") else first.platform
    slices = len(set(map(slice_of, jax.devices())))
    return Devices(jax.device_count(), first.device_kind, platform, known, slices)


def devices_of_topology(topology: str) -> Devices:
    """Returns the chips of a topology such as v5e:4x4, or of GPUs such as h100-80gb:8.

    Raises:
      UserError: the topology is not known.
    """
    chip = chips.of_topology(topology)
    kind, _, shape = topology.partition(":")
    sides = shape.split("x")
    if not all(side.isdecimal() and int(side) for side in sides):
        raise UserError(f"The topology {topology!r} is not of the form v5e:4x4.")
    platform = "tpu" if kind in chips.TPUS else "gpu"
    return Devices(math.prod(map(int, sides)), kind, platform, chip.memory)
