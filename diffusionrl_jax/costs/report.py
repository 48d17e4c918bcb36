"""Reports what a dry run found, as Markdown and as JSON."""

import dataclasses

from diffusionrl_jax.costs.compiled import Cost, OutOfMemory
from diffusionrl_jax.costs.roofline import PhaseCost, images_per_second
from diffusionrl_jax.distributed.chips import Chip
from diffusionrl_jax.monitoring.markdown import table

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class DryRun:
    """What an iteration needs on the topology that it was compiled for.

    Attributes:
      model, topology, chip, chips, fsdp, microbatch, remat: what it was compiled for.
      compiler: what compiled it.
      planned: the bytes that `planning` reckons with on each chip.
      images: how many images all chips together draw in an iteration.
      whole: whether the iteration was compiled as one program.
      partial: whether some of its phases were left out.
      quick: whether the compiler made less effort.
      assumed: what was not here, so that its published sizes were taken.
      phases: what each phase costs.
    """

    model: str
    topology: str
    compiler: str
    chip: Chip
    chips: int
    fsdp: int
    microbatch: dict[str, int]
    remat: str
    planned: float
    images: int
    whole: bool
    partial: bool
    quick: bool
    assumed: tuple[str, ...]
    phases: tuple[PhaseCost, ...]

    def fullest(self) -> PhaseCost:
        """Returns the phase that needs the most memory."""
        return max(self.phases, key=lambda phase: phase.memory)

    def summary(self) -> dict:
        """Returns the answer: whether it fits, and how fast it could be.

        Returns:
          "fits"; "memory" and "spare", bytes of the fullest phase on each chip; "fullest", that
          phase's name; and "images_per_second_per_chip", None if phases were left out or do not
          fit.
        """
        fullest = self.fullest()
        refused = any(isinstance(phase.cost, OutOfMemory) for phase in self.phases)
        fits = fullest.memory <= self.chip.memory and not refused
        return {
            "fits": fits,
            "memory": fullest.memory,
            "spare": self.chip.memory - fullest.memory,
            "fullest": fullest.name,
            "images_per_second_per_chip": None
            if self.partial
            else images_per_second(self.phases, self.chip, self.images / self.chips),
        }

    def to_json(self) -> dict:
        """Returns everything, for programs."""
        phases = []
        for phase in self.phases:
            resource, seconds = phase.bound(self.chip)
            phases.append(
                dataclasses.asdict(phase)
                | {"memory": phase.memory, "share": phase.share}
                | {"bound_by": resource, "seconds": seconds}
            )
        return dataclasses.asdict(self) | {"phases": phases} | self.summary()

    def markdown(self) -> str:
        """Returns everything, for people."""
        return "\n\n".join(
            [
                self._title(),
                self._verdict(),
                self._costs(),
                self._memory(),
                *self._collectives(),
                *self._largest(),
                *self._notes(),
            ]
        )

    def _title(self) -> str:
        microbatch = ", ".join(f"{name} {size}" for name, size in self.microbatch.items())
        return (
            f"{self.model} on {self.topology}: {self.chips} chips, fsdp {self.fsdp}, microbatches "
            f"{microbatch}, remat {self.remat}, {self.images} images an iteration; "
            f"{'the whole step as one program' if self.whole else 'one program a phase'}, compiled "
            f"{'with less effort ' if self.quick else ''}by {self.compiler}."
        )

    def _verdict(self) -> str:
        found = self.summary()
        spare = found["spare"] / GIB
        verdict = "**Fits**" if found["fits"] else "**Does not fit**"
        says = f", {abs(spare):.2f} GiB {'to spare' if spare >= 0 else 'too much'}"
        if spare >= 0 and not found["fits"]:  # The compiler has refused it.
            says = ""
        if self.partial:
            verdict += ", as far as these phases go"
        text = (
            f"{verdict}: {found['memory'] / GIB:.2f} GiB of {self.chip.memory / GIB:.4g} GiB in "
            f"{found['fullest']}{says}."
        )
        text += f" The plan reckons with {self.planned / GIB:.2f} GiB."
        if (speed := found["images_per_second_per_chip"]) is not None:
            text += f" At most {speed:.3f} images/s/chip (roofline, estimate)."
        return text

    def _costs(self) -> str:
        rows = []
        for phase in self.phases:
            resource, seconds = phase.bound(self.chip)
            if isinstance(phase.cost, OutOfMemory):
                rows.append([phase.name, f"{phase.repetitions}", *["does not fit"] + [""] * 6])
                continue
            share = phase.share
            times = phase.repetitions
            rows.append(
                [
                    phase.name,
                    f"{times}",
                    f"{times * phase.cost.operations / 1e12:.4g}",
                    "" if share is None else f"{share:.2f}",
                    f"{times * phase.cost.accessed / 1e9:.4g}",
                    f"{sum(c.bytes for c in phase.cost.collectives.values()) * times / 1e9:.3g}",
                    resource,
                    f"{seconds:.3g}",
                    f"{phase.cost.seconds:.0f}",
                ]
            )
        head = ["per chip and iteration", "calls", "TFLOP", "needed/compiled", "GB accessed"]
        head += ["GB in collectives", "bound by", "seconds at least (estimate)", "s to compile"]
        return table(head, rows)

    def _memory(self) -> str:
        rows = []
        for phase in self.phases:
            cost = phase.cost
            numbers = (
                (None, cost.needed - phase.arguments, None)
                if isinstance(cost, OutOfMemory)
                else (cost.arguments, cost.temporaries, cost.outputs)
            )
            cells = ["" if number is None else f"{number / GIB:.3f}" for number in numbers]
            rows.append(
                [phase.name, *cells, f"{phase.resident / GIB:.3f}", f"{phase.memory / GIB:.3f}"]
            )
        head = ["GiB per chip", "arguments", "temporaries", "output", "held (estimate)"]
        return table([*head, "together (estimate)"], rows)

    def _collectives(self) -> list[str]:
        rows = [
            [phase.name, kind, f"{total.count * phase.repetitions}"]
            + [f"{total.bytes * phase.repetitions / 1e9:.4g}"]
            for phase in self.phases
            if not isinstance(phase.cost, OutOfMemory)
            for kind, total in phase.cost.collectives.items()
        ]
        head = ["collectives per iteration", "kind", "count", "GB"]
        return [table(head, rows)] if rows else []

    def _largest(self) -> list[str]:
        rows, seen = [], set()
        for phase in self.phases:
            if isinstance(phase.cost, OutOfMemory) or id(phase.cost) in seen:
                continue
            seen.add(id(phase.cost))
            rows += [
                [phase.name, f"`{name}`", f"{size / GIB:.3f}"]
                for name, size in phase.cost.largest[:3]
            ]
        head = ["largest values (from the program's text)", "", "GiB"]
        return [table(head, rows)] if rows else []

    def _notes(self) -> list[str]:
        notes = []
        if self.assumed:
            notes.append(
                "Not here, taken at the published size: " + "; ".join(dict.fromkeys(self.assumed))
            )
        for phase in self.phases:
            if isinstance(phase.cost, OutOfMemory):
                notes.append(f"{phase.name}: {phase.cost}")
            elif phase.cost.unknown_loops:
                notes.append(
                    f"{phase.name} has loops of unknown length, counted once: "
                    + ", ".join(phase.cost.unknown_loops)
                )
        return ["\n".join(f"- {note}." for note in notes)] if notes else []


def row(name: str, cost: Cost) -> str:
    """Returns one program as a line of the Markdown table whose head is `HEAD`."""
    cells = (
        name,
        f"{cost.temporaries / 1e9:.2f}",
        f"{cost.operations / 1e12:.2f}",
        f"{cost.accessed / 1e9:.1f}",
        f"{cost.kernels}",
        f"{cost.seconds:.0f}",
    )
    return f"| {' | '.join(cells)} |"


HEAD = """| | temporaries, GB | TFLOP | GB accessed | attention kernels | seconds to compile |
|---|---|---|---|---|---|"""
