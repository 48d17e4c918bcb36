"""Collectives are counted as they were asked for."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from diffusionrl_jax.benchmarking.collectives import collectives
from diffusionrl_jax.distributed.mesh import make_mesh

FLOAT = 4
BOTH = ("data", "fsdp")


@pytest.mark.parametrize(
    ("function", "output", "expected"),
    [
        # Of an input [16, 8] over 8 devices, each has [2, 8].
        (lambda x: jax.lax.psum(x, BOTH), P(), ("all-reduce", 2 * 8 * FLOAT)),
        (lambda x: jax.lax.all_gather(x, "fsdp"), P(BOTH), ("all-gather", 4 * 2 * 8 * FLOAT)),
        (
            lambda x: jax.lax.psum_scatter(x, "data", scatter_dimension=1, tiled=True),
            P(BOTH),
            ("reduce-scatter", 2 * 4 * FLOAT),
        ),
        (
            lambda x: jax.lax.ppermute(x.astype(jnp.int16), "data", [(0, 1), (1, 0)]),
            P(BOTH),
            ("collective-permute", 2 * 8 * FLOAT // 2),
        ),
        (lambda x: x + 1, P(BOTH), None),
    ],
)
def test_collectives_of_one_device(function, output, expected):
    mapped = jax.shard_map(
        function, mesh=make_mesh(4), in_specs=P(BOTH), out_specs=output, check_vma=False
    )
    text = jax.jit(mapped).lower(jnp.zeros((16, 8))).compile().as_text()
    assert collectives(text) == ([expected] if expected else [])


# How libtpu writes those that go on in the background.
STARTED = """
  %all-gather-start.1 = (bf16[40,320]{1,0:T(8,128)(2,1)}, bf16[320,320]{1,0:T(8,128)(2,1)}) all-gather-start(%p), channel_id=1
  %all-gather-done.1 = bf16[320,320]{1,0} all-gather-done(%all-gather-start.1)
  %cp = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=2
  %ar = (f32[2,3]{1,0}, pred[]) all-reduce-start(%a, %b), to_apply=%add
  ROOT %tuple = (f32[2,3]{1,0}) tuple(%all-reduce.1)
"""  # noqa: E501


def test_started_collectives_count_once():
    assert collectives(STARTED) == [
        ("all-gather", 320 * 320 * 2),
        ("collective-permute", 8 * FLOAT),
        ("all-reduce", 2 * 3 * FLOAT + 1),
    ]
