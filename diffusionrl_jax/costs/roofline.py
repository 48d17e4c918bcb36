"""How fast a compiled iteration could be at most, and what limits each of its phases.

This is a model: each phase takes as long as the busiest of the chip's resources needs, and the work
of all other resources overlaps with it.
"""

import dataclasses
from collections.abc import Iterable

from diffusionrl_jax.costs.compiled import Cost, OutOfMemory
from diffusionrl_jax.distributed.chips import Chip

# An all-reduce sends everything twice: first the parts of the sum, then the sum.
PASSES = {"all-reduce": 2}


@dataclasses.dataclass(frozen=True)
class PhaseCost:
    """What a phase of an iteration costs on each chip.

    Attributes:
      name: the phase's name.
      repetitions: how often its program is called in an iteration.
      cost: the cost of one call, or the error that tells that the program does not fit.
      resident: the bytes held meanwhile, without temporaries and outputs; a model.
      arguments: the bytes of the program's arguments, by their shapes.
      needed: how many operations the mathematics of one call needs on each chip; None if they were
        not counted.
    """

    name: str
    repetitions: int
    cost: Cost | OutOfMemory
    resident: int
    arguments: int
    needed: float | None = None

    @property
    def memory(self) -> int:
        """The bytes held when the phase is at its fullest: a model, except for the temporaries."""
        if isinstance(self.cost, OutOfMemory):
            return self.resident - self.arguments + self.cost.needed
        return self.resident + self.cost.temporaries + self.cost.outputs

    def seconds(self, chip: Chip) -> dict[str, float]:
        """Returns for each resource the seconds that it is busy in an iteration.

        It is empty if nothing was compiled.
        """
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
        """Returns the busiest resource, and for how many seconds it is busy in an iteration."""
        return max(self.seconds(chip).items(), key=lambda item: item[1], default=("", 0.0))

    @property
    def share(self) -> float | None:
        """The needed operations divided by the compiled ones; None if either is not known."""
        if self.needed is None or isinstance(self.cost, OutOfMemory) or not self.cost.operations:
            return None
        return self.needed / self.cost.operations


def images_per_second(phases: Iterable[PhaseCost], chip: Chip, images: float) -> float | None:
    """Returns the most images per second and chip that are possible; None if a phase does not fit.

    Args:
      phases: all phases of an iteration.
      chip: the chip that they run on.
      images: how many images each chip draws in an iteration.
    """
    phases = list(phases)
    if any(isinstance(phase.cost, OutOfMemory) for phase in phases):
        return None
    return images / sum(phase.bound(chip)[1] for phase in phases)
