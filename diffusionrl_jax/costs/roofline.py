"""How fast a compiled iteration could be at most, and what holds each of its phases back.

A model: each phase takes as long as the busiest of the chip's resources needs, all else behind it.
"""

import dataclasses
from collections.abc import Iterable

from diffusionrl_jax.costs.compiled import Cost, OutOfMemory
from diffusionrl_jax.distributed.chips import Chip

# An all-reduce sends everything twice: the parts of the sum, and the sum.
PASSES = {"all-reduce": 2}


@dataclasses.dataclass(frozen=True)
class PhaseCost:
    """What a phase costs on each chip in an iteration.

    Attributes:
      name: of the phase.
      repetitions: calls of its program.
      cost: of one call, or why there is none.
      resident: bytes held meanwhile, without temporaries and outputs; a model.
      arguments: bytes of those that the program is called with, by their shapes.
      needed: operations of one call that the mathematics needs, on each chip; None if not asked.
    """

    name: str
    repetitions: int
    cost: Cost | OutOfMemory
    resident: int
    arguments: int
    needed: float | None = None

    @property
    def memory(self) -> int:
        """Bytes at the phase's fullest: a model, but for the temporaries."""
        if isinstance(self.cost, OutOfMemory):
            return self.resident - self.arguments + self.cost.needed
        return self.resident + self.cost.temporaries + self.cost.outputs

    def seconds(self, chip: Chip) -> dict[str, float]:
        """Resource -> seconds that it is busy in an iteration; empty if nothing was compiled."""
        if isinstance(self.cost, OutOfMemory):
            return {}
        sent = sum(
            PASSES.get(kind, 1) * total.bytes for kind, total in self.cost.collectives.items()
        )
        seconds = {
            "operations": self.cost.operations / chip.operations,
            "memory": self.cost.accessed / chip.bandwidth,
        }
        if chip.interconnect:
            seconds["interconnect"] = sent / chip.interconnect
        return {name: self.repetitions * value for name, value in seconds.items()}

    def bound(self, chip: Chip) -> tuple[str, float]:
        """The busiest resource, and its seconds."""
        return max(self.seconds(chip).items(), key=lambda item: item[1], default=("", 0.0))

    @property
    def share(self) -> float | None:
        """Needed operations by compiled ones."""
        if self.needed is None or isinstance(self.cost, OutOfMemory) or not self.cost.operations:
            return None
        return self.needed / self.cost.operations


def images_per_second(phases: Iterable[PhaseCost], chip: Chip, images: float) -> float | None:
    """The bound, if all phases are known.

    Args:
      phases: of an iteration.
      chip: that they run on.
      images: that each chip draws in an iteration.
    """
    phases = list(phases)
    if any(isinstance(phase.cost, OutOfMemory) for phase in phases):
        return None
    return images / sum(phase.bound(chip)[1] for phase in phases)
