"""Runs of equal blocks, whose parameters are stacked: how they are named, and how they are run.

A transformer has dozens of blocks that differ in nothing but their numbers. Their parameters are
kept as one tree of arrays [layers, ...], so that a block is compiled once, and is gathered and
computed again for the backward pass one at a time. In a tree of parameters, the blocks
`transformer_blocks_3` to `transformer_blocks_5` are found under "transformer_blocks_3_to_5".
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

from diffusionrl_jax.distributed.shards import (
    Shard,
    gather_shards,
    has_shards,
    is_shard,
)
from diffusionrl_jax.models.rematerialisation import POLICIES

STACK = re.compile(r"(.+)_(\d+)_to_(\d+)")
Path = tuple[str, ...]
Carry = TypeVar("Carry")
Result = TypeVar("Result")


def stack_name(blocks: str, first: int, last: int) -> str:
    """Returns the name under which the blocks `first` to `last` of a list are kept."""
    return f"{blocks}_{first}_to_{last}"


def stacked_shapes(block: Any, layers: int) -> Any:
    """Returns the shapes of so many blocks of these shapes, stacked."""
    one = lambda leaf: jax.ShapeDtypeStruct((layers, *leaf.shape), leaf.dtype)
    return jax.tree.map(one, block)


def layer_paths(path: Path) -> tuple[Path, ...]:
    """Returns the path that each layer's parameter would have by itself.

    Args:
      path: the path of a parameter; where it is of no stack, it is returned alone.
    """
    for place, name in enumerate(path):
        if found := STACK.fullmatch(name):
            blocks, first, last = found[1], int(found[2]), int(found[3])
            names = (f"{blocks}_{layer}" for layer in range(first, last + 1))
            return tuple((*path[:place], layer, *path[place + 1 :]) for layer in names)
    return (path,)


def is_stacked(path: Path) -> bool:
    """Returns whether the parameter at a path is a stack of layers."""
    return any(map(STACK.fullmatch, path))


def layer_shape(path: Path, shape: Sequence[int]) -> tuple[int, ...]:
    """Returns a parameter's shape, or that of one layer of a stack."""
    return tuple(shape[1:] if is_stacked(path) else shape)


def run_block(
    block: Callable[[Any, Carry], Result],
    params: Any,
    carry: Carry,
    remat: str = "none",
    within_scan: bool = False,
) -> Result:
    """Applies a block, or any other part of a network, whose parameters may be `Shard`s.

    These are gathered once the carry is there, and again in the backward pass.

    Args:
      block: a function of (params, carry). It may close over arrays.
      params: the block's parameters.
      carry: a tree of arrays.
      remat: what is computed again for the backward pass, one of `POLICIES`.
      within_scan: whether it is the body of a scan, where nothing is gained by keeping the compiler
        from merging what is computed twice.

    Returns:
      What the block returns.
    """
    gathers = has_shards(params)
    if remat == "none" and not gathers:
        return block(params, carry)

    def gathered(params, carry):
        return block(gather_shards(params, after=jax.tree.leaves(carry)[0]), carry)

    checkpointed = jax.checkpoint(gathered, policy=POLICIES[remat], prevent_cse=not within_scan)
    return checkpointed(params, carry)


def scan_blocks(
    block: Callable[[Any, Carry], Carry], params: Any, carry: Carry, remat: str = "none"
) -> Carry:
    """Applies a run of blocks one after the other; the arguments are those of `run_block`.

    Args:
      block: a function of (params, carry), which returns a carry of the same shapes.
      params: the blocks' parameters, a tree of arrays [layers, ...] or `Shard`s of them.
      carry: a tree of arrays.
      remat: as in `run_block`.
    """

    def body(carry, layer):
        layer = jax.tree.map(_of_one_layer, layer, is_leaf=is_shard)
        return run_block(block, layer, carry, remat, within_scan=True), None

    whole_layers = jax.tree.map(_gather_layers, params, is_leaf=is_shard)
    return jax.lax.scan(body, carry, whole_layers)[0]


def _gather_layers(leaf):
    """Gathers a parameter that is split along its layers, of which every device needs all."""
    return gather_shards(leaf) if is_shard(leaf) and leaf.axis == 0 else leaf


def _of_one_layer(leaf):
    """Returns a layer's shard, of which the scan has taken the axis of layers away."""
    return Shard(leaf.array, leaf.axis - 1, leaf.dtype) if is_shard(leaf) else leaf
