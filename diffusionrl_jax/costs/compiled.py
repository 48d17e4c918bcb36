"""Compiles a function for a TPU that is not there, and reads what one chip would need for it."""

import dataclasses
import importlib.metadata
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath
from jax.experimental import topologies
from jax.sharding import Mesh

from diffusionrl_jax.costs.program_text import (
    Collectives,
    Program,
    collectives,
    count,
    kernel_operations,
    largest_values,
)
from diffusionrl_jax.data.files import matching
from diffusionrl_jax.distributed.mesh import abstract_arrays, make_mesh, replicated
from diffusionrl_jax.mistakes import UserError

# What libtpu is told before it is loaded, unless the user tells it otherwise.
ENVIRONMENT = {
    # libtpu would otherwise ask a metadata server which TPU this machine is.
    "TPU_SKIP_MDS_QUERY": "1",
    # Compiling opens no TPU, so that several processes may compile at once.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # libtpu warns of every setting of a TPU machine that is missing here.
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
# The compiler's errors for a program that does not fit, before and after it has placed its values.
OUT_OF_MEMORY = re.compile(
    r"(?:temporaries \(|Used )([\d.]+)([KMG])"
    r"(?:\) exceeds available HBM \(| of )([\d.]+)([KMG])"
)
# The head of the compiler's memory report for a program that fits.
ALLOCATED = re.compile(r"Memory Space: default \(color=0\)\nTotal bytes: (\d+)")
# XLA's effort level O1, by its number there.
QUICK = {"optimization_level": 19}
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one chip needs for one call of a program.

    A loop's body counts as often as the loop turns.

    Attributes:
      arguments: the bytes of the arguments.
      temporaries: the bytes of the temporaries.
      outputs: the bytes of the outputs, except those that take their arguments' place.
      operations: the number of floating-point operations, with those of the attention kernels.
      accessed: the bytes read and written, without those of the attention kernels.
      collectives: kind of collective -> all collectives of that kind.
      kernels: the number of calls of attention kernels.
      largest: the names and bytes of the largest values. They are read from the program's text: the
        compiler names no buffers of a program that fits.
      unknown_loops: the loops whose number of turns the text does not tell, and which are counted
        once.
      seconds: how long compiling took here.
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
    """Raised where a program does not fit the chip's memory.

    Attributes:
      needed: the bytes of its arguments and temporaries, which libtpu gives as one number.
      available: the bytes that the chip has.
    """

    def __init__(self, needed: int, available: int):
        super().__init__(needed, available)
        self.needed = needed
        self.available = available

    def __str__(self) -> str:
        return (
            f"It needs {self.needed / 2**30:.2f} GiB for arguments and temporaries; the chip has "
            f"{self.available / 2**30:.2f} GiB."
        )


def compiler() -> str:
    """Returns which libtpu compiles. The one that JAX runs with on TPUs comes with `jax[tpu]`."""
    packages = importlib.metadata.packages_distributions().get("libtpu")
    return f"libtpu {importlib.metadata.version(packages[0]) if packages else '(no package)'}"


def topology_devices(topology: str) -> list:
    """Returns the chips that libtpu describes for a topology, such as v5e:4x4.

    Raises:
      UserError: libtpu is not installed, or describes no such topology.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # The two cores of a v4 chip are one device, as JAX has them on a slice.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    if set(topology.partition(":")[2].split("x")) == {"1"}:  # One chip is less than a whole host.
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu", **options).devices)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"libtpu describes no topology {topology!r} ({reason}): name one such as v5e:2x2, "
            "v5e:4x4, v5e:16x16, v4:2x2x4, v5p:4x4x4 or v6e:8x8, with `pip install 'jax[tpu]'`."
        ) from error


def chip(topology: str) -> Mesh:
    """Returns a mesh of the first chip of a topology."""
    return make_mesh(devices=topology_devices(topology)[:1])


def compile_program(
    lowered: jax.stages.Lowered, quick: bool = False, save: str | None = None
) -> Cost:
    """Compiles a program, and reads what one call needs.

    The compiler's reports, a gigabyte for a full-size program, go to a temporary folder.

    Args:
      lowered: the program.
      quick: whether the compiler makes less effort (XLA's level O1).
      save: a file for the compiled program's text.

    Raises:
      OutOfMemory: the program does not fit.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options: Any = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = lowered.compile(options | (QUICK if quick else {}))
        except jax.errors.JaxRuntimeError as error:
            if match := OUT_OF_MEMORY.search(str(error)):
                needed, unit, available, available_unit = match.groups()
                raise OutOfMemory(
                    int(float(needed) * UNITS[unit]), int(float(available) * UNITS[available_unit])
                ) from error
            raise
        seconds = time.perf_counter() - start
        return read(compiled, seconds, save, _allocated(folder))


def _allocated(folder: str) -> int | None:
    """Reads the bytes of arguments, temporaries and outputs from the compiler's reports, if any."""
    reports = (path.read_text() for path in matching(folder, "*memory-usage-report.txt"))
    found = [int(match[1]) for report in reports if (match := ALLOCATED.match(report))]
    return max(found, default=None)


def read(
    compiled: jax.stages.Compiled,
    seconds: float = 0.0,
    save: str | None = None,
    allocated: int | None = None,
) -> Cost:
    """Reads what a compiled program needs.

    Args:
      compiled: the program.
      seconds: how long compiling took.
      save: a file for the program's text.
      allocated: the bytes of arguments, temporaries and outputs together from the compiler's
        reports, if there are any. The temporaries in libtpu 0.0.42's memory analysis are up to a
        third larger than these reports'.
    """
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None  # XLA returns both.
    arguments = memory.argument_size_in_bytes
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries = allocated - arguments - outputs if allocated else memory.temp_size_in_bytes
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
        arguments=arguments,
        temporaries=temporaries,
        outputs=outputs,
        operations=operations + sum(visits[name] * sum(own) for name, own in kernels.items()),
        accessed=accessed,
        collectives=collectives(program),
        kernels=round(sum(visits[name] * len(own) for name, own in kernels.items())),
        largest=largest_values(program),
        unknown_loops=tuple(unknown),
        seconds=seconds,
    )


def compile_cost(function: Callable, mesh: Mesh, *arguments: Any) -> Cost:
    """Compiles a function for a mesh, with everything replicated, and reads what one call needs.

    Args:
      function: a pure function of arrays.
      mesh: the mesh, from `chip`.
      *arguments: trees of `jax.ShapeDtypeStruct`.

    Raises:
      OutOfMemory: the program does not fit.
    """
    arguments = abstract_arrays(arguments, replicated(mesh))
    return compile_program(jax.jit(function).lower(*arguments))
