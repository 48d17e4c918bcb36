"""What is read from the text of a compiled program."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from diffusionrl_jax.costs import program_text
from diffusionrl_jax.distributed.mesh import make_mesh

TEXT = """
  %splash_mha_fwd_residuals.1 = (f32[512,128]{1,0:T(8,128)}, f32[512,64]{1,0}, bf16[5,4096,64]{2,1,0}, f32[5,4096,128]{2,1,0}) custom-call(%a), custom_call_target="tpu_custom_call"
  %splash_mha_dq_no_residuals.1 = (f32[512,64]{1,0}, bf16[5,4096,64]{2,1,0}) custom-call(%b)
  %splash_mha_dkv_no_residuals.1 = (f32[512,64]{1,0}, bf16[2,5,4096,64]{2,1,0}) custom-call(%c)
"""  # noqa: E501
# As a TPU's compiler writes them: a loop of 5 turns around a loop of 3.
LOOPS = """HloModule jit_f, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (x: f32[8,4]) -> f32[2,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %all-reduce.9 = f32[8,4]{1,0} all-reduce(%x), channel_id=1, to_apply=%sum
  %zero = s32[] constant(0)
  ROOT %slice = f32[2,4]{1,0} dynamic-slice(%all-reduce.9, %zero, %zero), dynamic_slice_sizes={2,4}
}

%inner_body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[]{:T(128)}, f32[8,4]{1,0}) parameter(0)
  %v = f32[8,4]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %scattered = f32[2,4]{1,0} fusion(%v), kind=kCustom, calls=%all-reduce-scatter.1
  %start = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%scattered), channel_id=2, dimensions={0}
  %done = f32[8,4]{1,0} all-gather-done(%start)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %t = (s32[]{:T(128)}, f32[8,4]{1,0}) tuple(%i, %done)
}

%inner_condition (p: (s32[], f32[8,4])) -> pred[] {
  %limit = u32[]{:T(128)} constant(3)
  %p = (s32[]{:T(128)}, f32[8,4]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (q: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %q = (s32[]{:T(128)}, f32[8,4]{1,0}) parameter(0)
  ROOT %while.1 = (s32[]{:T(128)}, f32[8,4]{1,0}) while(%q), condition=%inner_condition, body=%inner_body
}

%condition (q: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %q = (s32[]{:T(128)}, f32[8,4]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (q: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %q = (s32[]{:T(128)}, f32[8,4]{1,0}) parameter(0)
  ROOT %while.2 = (s32[]{:T(128)}, f32[8,4]{1,0}) while(%q), condition=%condition, body=%body
}
"""  # noqa: E501
BOTH = ("data", "fsdp")


def test_operations_of_kernels():
    # Two products of [4096, 64] and [64, 4096] forward, three and four backward; five heads.
    product = 2 * 5 * 4096 * 4096 * 64
    assert program_text.kernel_operations(TEXT) == [2 * product, 3 * product, 2 * 4 * product]


def test_operations_of_kernels_of_a_batch():
    batched = TEXT.replace("[5,", "[8,5,").replace("f32[512,", "f32[8,512,")
    assert program_text.kernel_operations(batched)[:2] == [
        8 * operations for operations in program_text.kernel_operations(TEXT)[:2]
    ]


def test_collectives_are_counted_as_often_as_loops_turn():
    program = program_text.Program(LOOPS)
    assert program.visits()["inner_body"] == 15
    # On a chip the larger side of both is [8, 4] of float32.
    each = program_text.Collectives(15, 15 * 8 * 4 * 4)
    assert program_text.collectives(program) == {"all-gather": each, "reduce-scatter": each}


def test_a_loop_of_unknown_length_is_told():
    program = program_text.Program(LOOPS.replace("constant(3)", "parameter(1)"))
    assert program.loops["body"] == [program_text.Loop("inner_body", None)]
    assert program.visits()["inner_body"] == 5


@pytest.mark.parametrize(
    ("function", "output", "expected"),
    [
        # Of an input [16, 8] of float32 over 8 devices, each has [2, 8].
        (lambda x: jax.lax.psum(x, BOTH), (), ("all-reduce", 2 * 8 * 4, 1)),
        (lambda x: jax.lax.all_gather(x, "fsdp"), (BOTH,), ("all-gather", 4 * 2 * 8 * 4, 1)),
        (
            lambda x: jax.lax.psum_scatter(x, "data", scatter_dimension=1, tiled=True),
            (BOTH,),
            ("reduce-scatter", 2 * 8 * 4, 1),
        ),
        (
            lambda x: jax.lax.ppermute(x.astype(jnp.int16), "data", [(0, 1), (1, 0)]),
            (BOTH,),
            ("collective-permute", 2 * 8 * 2, 1),
        ),
        (lambda x: x + 1, (BOTH,), None),
    ],
)
def test_collectives_are_those_that_were_asked_for(function, output, expected):
    mapped = jax.shard_map(
        function,
        mesh=make_mesh(4),
        in_specs=PartitionSpec(BOTH),
        out_specs=PartitionSpec(*output),
        check_vma=False,
    )
    text = jax.jit(mapped).lower(jnp.zeros((16, 8))).compile().as_text()
    assert list(program_text.sent(program_text.Program(text))) == ([expected] if expected else [])
