"""Compiles a function for a TPU that is not there, and reads what one chip would need for it.

The compiler's own analysis counts a loop's body once. Here every loop is found in the program's
text with the number of its turns, and the same analysis is applied to its body alone.
"""

import dataclasses
import functools
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# libtpu would otherwise ask a metadata server which TPU this machine is.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
# Compiling opens no TPU, so that several may compile at once.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
# It warns of every setting of a TPU machine that it misses.
os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")

import jax
from etils import epath
from jax.experimental import topologies
from jax.sharding import Mesh
from jaxlib import _hlo, _jax

from diffusionrl_jax.distributed.mesh import make_mesh, replicated

# Multiply-adds of a kernel for each query, key and channel, times two. The backward pass computes
# the logits and the probabilities' gradients once for the query and once for keys and values.
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
# What the compiler says of a program that does not fit.
OUT_OF_MEMORY = re.compile(
    r"temporaries \(([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)([KMG])"
)
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class Collectives:
    """Collectives of one kind.

    Attributes:
      count: how many are run, those in loops as often as the loops turn.
      bytes: of what goes into one on a chip or comes out of it, whichever is more; of all of them.
    """

    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one chip needs for one call; loops are counted as often as they turn.

    Attributes:
      arguments, temporaries, outputs: bytes; outputs that take their arguments' place are left out.
      operations: floating-point operations, those of the attention kernels included.
      accessed: bytes read and written, those of the attention kernels excluded.
      collectives: kind -> all of them.
      kernels: calls of attention kernels.
      largest: name and bytes of the largest values. They are a reading of the program's text: the
        compiler names no buffers of a program that fits.
      unknown_loops: loops whose turns the text does not tell, and which are counted once.
      seconds: what compiling took here.
    """

    arguments: int
    temporaries: int
    outputs: int
    operations: float
    accessed: float
    collectives: Mapping[str, Collectives]
    kernels: int
    largest: tuple[tuple[str, int], ...]
    unknown_loops: tuple[str, ...]
    seconds: float


class OutOfMemory(Exception):
    """The program does not fit.

    Attributes:
      temporaries: bytes that it needs beside its arguments and outputs.
      available: bytes that the chip has.
    """

    def __init__(self, temporaries: int, available: int):
        super().__init__(temporaries, available)
        self.temporaries = temporaries
        self.available = available

    def __str__(self) -> str:
        return (
            f"It needs {self.temporaries / 2**30:.2f} GiB for temporaries; the chip has "
            f"{self.available / 2**30:.2f} GiB."
        )


def topology_devices(topology: str) -> list:
    """The chips that libtpu describes for a topology, such as v5e:4x4.

    Raises:
      ValueError: libtpu is not installed, or describes no such topology.
    """
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"libtpu describes no topology {topology!r} ({reason}): name one such as v5e:2x2, "
            "v5e:4x4, v5e:16x16, v4:2x2x4, v5p:4x4x4 or v6e:8x8, with `pip install libtpu`."
        ) from error


def chip(topology: str) -> Mesh:
    """A mesh of the first chip of a topology."""
    return make_mesh(devices=topology_devices(topology)[:1])


def shape_bytes(shape: str) -> int:
    """Bytes of an array or a tuple of arrays as a program's text writes their shapes."""
    return sum(
        BYTES.get(kind, 0) * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in SHAPE.findall(shape)
    )


def kernel_operations(program: str) -> list[int]:
    """Operations of each splash attention kernel in a compiled program's text.

    The compiler does not count them. The first of a kernel's results with the most dimensions has
    the shape [..., tokens, head size]; there are as many keys as queries.
    """
    counts = []
    for kind, results in KERNEL.findall(program):
        shapes = [tuple(int(n) for n in dims.split(",") if n) for _, dims in SHAPE.findall(results)]
        shape = max(shapes, key=len)
        counts.append(KERNEL_OPERATIONS[kind] * math.prod(shape) * shape[-2])
    return counts


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop's body, and how often it turns; None if the text does not tell."""

    body: str
    turns: int | None


def _called(text: str) -> list[str]:
    branches = ", ".join(BRANCHES.findall(text))
    return CALLED.findall(text) + re.findall(r"%([\w.-]+)", branches)


class Program:
    """A compiled program's text, by computation.

    Attributes:
      entry: the name of the computation that is run.
      computations: name -> its text.
      instructions: computation -> (name, shape, operation, the rest of the line) of each.
      called: computation -> those that its instructions refer to, once for each of them.
      loops: computation -> the loops in it.
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
                Loop(re.search(r"\bbody=%([\w.-]+)", rest)[1], self._turns(rest))
                for _, _, operation, rest in instructions
                if operation == "while"
            ]
            for name, instructions in self.instructions.items()
        }

    def _turns(self, rest: str) -> int | None:
        """A scan counts from 0 up to the only integer of its condition."""
        condition = re.search(r"\bcondition=%([\w.-]+)", rest)[1]
        texts = [self.computations[part] for part in (condition, *self.called[condition])]
        limits = {int(limit) for text in texts for limit in TURNS.findall(text)}
        counts_up = any("direction=LT" in text for text in texts)
        return limits.pop() if len(limits) == 1 and counts_up else None

    def visits(self) -> dict[str, int]:
        """Computation -> how often it is run in one call of the program."""
        counts = dict.fromkeys(self.computations, 0)

        def visit(name: str, times: int) -> None:
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
        """The text of a program that runs one computation."""
        needed = {name}
        stack = [name]
        while stack:
            for called in self.called[stack.pop()]:
                if called not in needed:
                    needed.add(called)
                    stack.append(called)
        parts = [text for part, text in self.computations.items() if part in needed - {name}]
        text = "\n\n".join(["HloModule part", *parts, f"ENTRY {self.computations[name]}"])
        return STACK_FRAME.sub("", text)  # They refer to what is left out.


def _analyse(text: str) -> tuple[float, float]:
    """The compiler's count of a program's operations and bytes, its loops' bodies once."""
    client = jax.local_devices(backend="cpu")[0].client
    analysis = _jax.hlo_module_cost_analysis(client, _hlo.hlo_module_from_text(text))
    return analysis.get("flops", 0.0), analysis.get("bytes accessed", 0.0)


def count(program: Program) -> tuple[float, float]:
    """Operations and bytes accessed of a program, its loops' bodies as often as they turn."""

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
    """A computation and all that it calls, but for the insides of loops."""
    yield name
    bodies = {loop.body for loop in program.loops[name]}
    for called in program.called[name]:
        if called not in bodies:
            yield from _inlined(program, called)


def collectives(program: Program) -> dict[str, Collectives]:
    """Kind -> the collectives that a program runs.

    A sum that is at once cut into the chips' parts is a "reduce-scatter", also where the compiler
    fuses the two.
    """
    totals = dict.fromkeys(COLLECTIVES, (0, 0))
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
                given -= taken  # What starts gives its operands back beside its results.
            if "reduce-scatter" in name or "all-reduce-scatter" in name:
                kind = "reduce-scatter"
            number, size = totals[kind]
            totals[kind] = number + times, size + times * max(taken, given)
    return {kind: Collectives(*total) for kind, total in totals.items() if total[0]}


def largest_values(program: Program, most: int = 5) -> tuple[tuple[str, int], ...]:
    """The largest arrays outside of fusions: what JAX calls them, their shapes, their bytes."""
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


def compile_program(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, float]:
    """Compiles, and says what it took in seconds.

    Raises:
      OutOfMemory: it does not fit.
    """
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if match := OUT_OF_MEMORY.search(str(error)):
            needed, unit, available, available_unit = match.groups()
            raise OutOfMemory(
                int(float(needed) * UNITS[unit]), int(float(available) * UNITS[available_unit])
            ) from error
        raise
    return compiled, time.perf_counter() - start


def read(compiled: jax.stages.Compiled, seconds: float = 0.0, save: str | None = None) -> Cost:
    """What a compiled program needs.

    Args:
      compiled: the program.
      seconds: what compiling took.
      save: a file for the program's text.
    """
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    if save:
        epath.Path(save).write_text(text)
    program = Program(text)
    operations, accessed = count(program)
    visits = program.visits()
    kernels = {
        name: kernel_operations(text) for name, text in program.computations.items() if visits[name]
    }
    unknown = [
        loop.body
        for name, times in visits.items()
        if times
        for loop in program.loops[name]
        if loop.turns is None
    ]
    return Cost(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        operations=operations + sum(visits[name] * sum(own) for name, own in kernels.items()),
        accessed=accessed,
        collectives=collectives(program),
        kernels=sum(visits[name] * len(own) for name, own in kernels.items()),
        largest=largest_values(program),
        unknown_loops=tuple(unknown),
        seconds=seconds,
    )


def compile_cost(function: Callable, mesh: Mesh, *arguments: Any) -> Cost:
    """Compiles for the mesh, everything replicated.

    Args:
      function: pure, of arrays.
      mesh: from `chip`.
      *arguments: trees of `jax.ShapeDtypeStruct`.

    Raises:
      OutOfMemory: it does not fit.
    """
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh))
    return read(*compile_program(jax.jit(function).lower(*jax.tree.map(place, arguments))))
