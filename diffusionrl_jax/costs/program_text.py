"""Reads a compiled program's text: its loops, its collectives, its largest values.

The compiler's own analysis counts a loop's body once. Here every loop is found in the text together
with the number of its turns, and the same analysis is applied to its body alone.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import jax
from jaxlib import _hlo, _jax  # pyright: ignore[reportAttributeAccessIssue]

from diffusionrl_jax.distributed.loops import average_turns

# A kernel's multiply-adds for each query, key and channel, times two. The backward pass computes
# the logits and the probabilities' gradients twice: for the query, and for the keys and values.
KERNEL_OPERATIONS = {"fwd": 4, "dq": 6, "dkv": 8}
KERNEL = re.compile(r"%splash_mha_(fwd|dq|dkv)[\w.]* = (.*?) custom-call\(")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$", re.MULTILINE)
CALLED = re.compile(r"\b(?:body|calls|to_apply|condition)=%([\w.-]+)")
BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
OPERATION_NAME = re.compile(r'\bop_name="([^"]*)"')
STACK_FRAME = re.compile(r"\bstack_frame_id=\d+")
TURNS = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collectives:
    """All collectives of one kind in a program.

    Attributes:
      count: how many are run. Those in a loop count as often as the loop turns.
      bytes: the bytes of them all, on one chip. Each has the bytes that go into it or come out of
        it, whichever are more.
    """

    count: int
    bytes: int


def shape_bytes(shape: str) -> int:
    """Returns the bytes of an array, or of a tuple of arrays, by its shape in a program's text."""
    return sum(
        BYTES.get(kind, 0) * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in SHAPE.findall(shape)
    )


def kernel_operations(program: str) -> list[int]:
    """Returns the operations of each splash attention kernel in a compiled program's text.

    The compiler does not count them. Of a kernel's results, the first one with the most dimensions
    has the shape [..., tokens, head size]. There are as many keys as queries.
    """
    counts = []
    for kind, results in KERNEL.findall(program):
        shapes = [tuple(int(n) for n in dims.split(",") if n) for _, dims in SHAPE.findall(results)]
        shape = max(shapes, key=len)
        counts.append(KERNEL_OPERATIONS[kind] * math.prod(shape) * shape[-2])
    return counts


@dataclasses.dataclass(frozen=True)
class Loop:
    """The name of a loop's body, and how often the loop turns; None if the text does not tell."""

    body: str
    turns: float | None


def _named(attribute: str, rest: str) -> str:
    """Returns the computation that an instruction names as its attribute."""
    found = re.search(rf"\b{attribute}=%([\w.-]+)", rest)
    assert found is not None
    return found[1]


def _called(text: str) -> list[str]:
    """Returns the computations that a text refers to, in order, once for each reference."""
    branches = ", ".join(BRANCHES.findall(text))
    return CALLED.findall(text) + re.findall(r"%([\w.-]+)", branches)


class Program:
    """A compiled program's text, by computation.

    Attributes:
      entry: the name of the computation that is run.
      computations: name of a computation -> its text.
      instructions: name of a computation -> its instructions, each as (name, shape, operation, rest
        of the line).
      called: name of a computation -> those that its instructions refer to, once for each
        reference.
      loops: name of a computation -> the loops in it.
    """

    def __init__(self, text: str):
        self.computations = {}
        for block in text.split("\n\n"):
            block = block.strip("\n")
            if match := re.match(r"(ENTRY )?%([\w.-]+) \(", block):
                self.computations[match[2]] = block.removeprefix("ENTRY ")
                if match[1]:
                    self.entry = match[2]

        self.instructions = {
            name: INSTRUCTION.findall(text) for name, text in self.computations.items()
        }
        self.called = {name: _called(text) for name, text in self.computations.items()}
        self.loops = {
            name: [
                Loop(_named("body", rest), self._turns(rest))
                for _, _, operation, rest in instructions
                if operation == "while"
            ]
            for name, instructions in self.instructions.items()
        }

    def _turns(self, rest: str) -> float | None:
        """Returns a loop's turns: a scan counts from 0 to the only integer of its condition.

        Those of a `loops.loop` are the average that it names.
        """
        told = OPERATION_NAME.search(rest)
        if told and (average := average_turns(told[1].removesuffix("/while"))) is not None:
            return average
        condition = _named("condition", rest)
        texts = [self.computations[part] for part in (condition, *self.called[condition])]
        limits = {int(limit) for text in texts for limit in TURNS.findall(text)}
        counts_up = any("direction=LT" in text for text in texts)
        return limits.pop() if len(limits) == 1 and counts_up else None

    def visits(self) -> dict[str, float]:
        """Returns how often each computation is run in one call of the program."""
        counts: dict[str, float] = dict.fromkeys(self.computations, 0)

        def visit(name: str, times: float) -> None:
            counts[name] += times
            bodies = [loop.body for loop in self.loops[name]]
            for called in self.called[name]:
                if called not in bodies:
                    visit(called, times)
            for loop in self.loops[name]:
                visit(loop.body, times * (1 if loop.turns is None else loop.turns))

        visit(self.entry, 1)
        return counts

    def standing_alone(self, name: str) -> str:
        """Returns the text of a program that runs one computation."""
        needed = {name}
        stack = [name]
        while stack:
            for called in self.called[stack.pop()]:
                if called not in needed:
                    needed.add(called)
                    stack.append(called)
        parts = [text for part, text in self.computations.items() if part in needed - {name}]
        text = "\n\n".join(["HloModule part", *parts, f"ENTRY {self.computations[name]}"])
        return STACK_FRAME.sub("", text)  # Stack frames refer to what is left out.


def _analyse(text: str) -> tuple[float, float]:
    """Returns the compiler's count of a program's operations and bytes, with loops' bodies once."""
    client = jax.local_devices(backend="cpu")[0].client
    analysis = _jax.hlo_module_cost_analysis(client, _hlo.hlo_module_from_text(text))
    return analysis.get("flops", 0.0), analysis.get("bytes accessed", 0.0)


def count(program: Program) -> tuple[float, float]:
    """Returns a program's operations and bytes accessed. A loop's body counts once a turn."""

    @functools.cache
    def total(name: str) -> tuple[float, float]:
        operations, accessed = _analyse(program.standing_alone(name))
        for called in _inlined(program, name):
            for loop in program.loops[called]:
                once = _analyse(program.standing_alone(loop.body))
                whole = total(loop.body)
                turns = 1 if loop.turns is None else loop.turns
                operations += turns * whole[0] - once[0]
                accessed += turns * whole[1] - once[1]
        return operations, accessed

    return total(program.entry)


def _inlined(program: Program, name: str) -> Iterator[str]:
    """Yields a computation and all that it calls, except the insides of loops."""
    yield name
    bodies = {loop.body for loop in program.loops[name]}
    for called in program.called[name]:
        if called not in bodies:
            yield from _inlined(program, called)


def sent(program: Program) -> Iterator[tuple[str, int, float]]:
    """Yields the collectives of a program: kind, bytes on a chip, and how often one call runs it.

    The bytes are those that go into it or come out of it, whichever are more. A sum that is at once
    cut into the chips' parts is a "reduce-scatter", also where the compiler fuses the two.
    """
    for name, times in program.visits().items():
        shapes = {own: shape for own, shape, _, _ in program.instructions[name]}
        for _, shape, operation, rest in program.instructions[name]:
            kind = operation.removesuffix("-start")
            if kind not in COLLECTIVES or not times:
                continue
            operands = re.findall(r"%([\w.-]+)", rest.split(")")[0])
            taken = sum(shape_bytes(shapes.get(operand, "")) for operand in operands)
            given = shape_bytes(shape)
            if operation != kind and shape.startswith("("):
                given -= taken  # A start returns its operands beside its results.
            if "reduce-scatter" in name or "all-reduce-scatter" in name:
                kind = "reduce-scatter"
            yield kind, max(taken, given), times


def collectives(program: Program) -> dict[str, Collectives]:
    """Adds up a program's collectives by kind. Those in a loop count as often as the loop turns."""
    totals = {}
    for kind, size, times in sent(program):
        number, total = totals.get(kind, (0, 0))
        totals[kind] = number + times, total + size * times
    return {kind: Collectives(*map(round, total)) for kind, total in totals.items()}


def largest_values(program: Program, most: int = 5) -> tuple[tuple[str, int], ...]:
    """Returns the largest arrays outside of fusions: JAX's name with the shape, and the bytes."""
    fused = {
        called
        for name in program.computations
        for _, _, operation, rest in program.instructions[name]
        if operation == "fusion"
        for called in CALLED.findall(rest)
    }
    values = {}
    for name in program.computations.keys() - fused:
        for own, shape, operation, rest in program.instructions[name]:
            if operation in ("tuple", "while", "get-tuple-element", "bitcast", "call", "parameter"):
                continue
            told = OPERATION_NAME.search(rest)
            for part in SHAPE.finditer(shape):
                label = f"{told[1] if told else own} {part[0]}"
                values[label] = shape_bytes(part[0])
    return tuple(sorted(values.items(), key=lambda item: -item[1])[:most])
