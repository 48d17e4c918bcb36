"""Compiles a function for a TPU that is not there, and says what it would take."""

import dataclasses
import math
import os
import re
import time
from collections.abc import Callable
from typing import Any

# libtpu would otherwise ask a metadata server which TPU this machine is.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
# Compiling opens no TPU, so that several may compile at once.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from diffusionrl_jax.distributed.mesh import make_mesh, replicated

# Multiply-adds of a kernel for each query, key and channel, times two. The backward pass computes
# the logits and the probabilities' gradients once for the query and once for keys and values.
KERNEL_OPERATIONS = {"fwd": 4, "dq": 6, "dkv": 8}
KERNEL = re.compile(r"%splash_mha_(fwd|dq|dkv)[\w.]* = (.*?) custom-call\(")
SHAPE = re.compile(r"\w+\[([\d,]+)\]")


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one chip needs for one call.

    Attributes:
      arguments, temporaries, outputs: bytes.
      operations: floating-point operations, those of the attention kernels included.
      accessed: bytes read and written, those of the attention kernels excluded.
      kernels: calls of attention kernels.
      seconds: what compiling took here.
    """

    arguments: int
    temporaries: int
    outputs: int
    operations: float
    accessed: float
    kernels: int
    seconds: float


def chip(topology: str) -> Mesh:
    """A mesh of the first chip of a topology that libtpu describes, such as v5e:2x2."""
    described = topologies.get_topology_desc(topology, platform="tpu")
    return make_mesh(devices=list(described.devices)[:1])


def kernel_operations(program: str) -> list[int]:
    """Operations of each splash attention kernel in a compiled program's text.

    The compiler does not count them. A kernel's first result with three dimensions or more has the
    shape [..., tokens, head size]; there are as many keys as queries.
    """
    counts = []
    for kind, results in KERNEL.findall(program):
        shapes = [tuple(map(int, dims.split(","))) for dims in SHAPE.findall(results)]
        shape = next(shape for shape in shapes if len(shape) >= 3)
        counts.append(KERNEL_OPERATIONS[kind] * math.prod(shape) * shape[-2])
    return counts


def compile_cost(function: Callable, mesh: Mesh, *arguments: Any) -> Cost:
    """Compiles for the mesh, everything replicated.

    Args:
      function: pure, of arrays.
      mesh: from `chip`.
      *arguments: trees of `jax.ShapeDtypeStruct`.
    """
    start = time.perf_counter()
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh))
    compiled = jax.jit(function).lower(*jax.tree.map(place, arguments)).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    kernels = kernel_operations(compiled.as_text())
    return Cost(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        operations=cost["flops"] + sum(kernels),
        accessed=cost["bytes accessed"],
        kernels=len(kernels),
        seconds=time.perf_counter() - start,
    )


def count_operations(function: Callable, *arguments: Any) -> float:
    """Floating-point operations of a function before it is compiled: those of its definition.

    Seconds, where compiling takes minutes. The bodies of loops are counted once, attention kernels
    not at all, and cumulative sums as if each was a sum of its own: for functions without these.

    Args:
      function: pure, of arrays.
      *arguments: trees of `jax.ShapeDtypeStruct`.
    """
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def row(name: str, cost: Cost) -> str:
    """A line of the Markdown table whose head is `HEAD`."""
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
