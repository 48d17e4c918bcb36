"""What the compiler does not count is read from its text."""

import types

import jax
import jax.numpy as jnp
import pytest
from jax._src.config import EffortLevel
from jax.sharding import NamedSharding, PartitionSpec

from diffusionrl_jax.costs import compiled
from diffusionrl_jax.distributed.mesh import FSDP, batch_sharding, make_mesh
from diffusionrl_jax.models.attention import attend


def test_splash_compiles_for_a_tpu_that_is_not_there():
    pytest.importorskip("libtpu")
    mesh = compiled.chip("v5e:2x2")
    # Head size 40 is Stable Diffusion 1.5's, not a multiple of anything that the chip has.
    arguments = [jax.ShapeDtypeStruct((1, 1024, 8, 40), jnp.bfloat16)] * 3

    def loss(*arguments):
        return jnp.sum(attend(*arguments, scale=40**-0.5, mesh=mesh).astype(jnp.float32))

    cost = compiled.compile_cost(jax.grad(loss, (0, 1, 2)), mesh, *arguments)
    assert cost.kernels == 3
    assert cost.operations >= 18 * 8 * 1024 * 1024 * 40
    # One matrix of probabilities would be 16 MiB.
    assert cost.temporaries < 8 * 2**20


@pytest.mark.parametrize(
    ("topology", "count"),
    [("v5e:1x1", 1), ("v5e:2x2", 4), ("v6e:1x1", 1), ("v4:1x1x1", 1), ("v5p:2x2x2", 8)],
)
def test_one_chip_and_many_are_described(topology, count):
    pytest.importorskip("libtpu")
    assert len(compiled.topology_devices(topology)) == count


def test_operations_and_collectives_of_a_compiled_program():
    mesh = make_mesh(8)

    def function(kernel, rows):
        def outer(rows, _):
            def inner(rows, _):
                return jnp.tanh(rows @ kernel), None

            rows, _ = jax.lax.scan(inner, rows, length=3)
            return rows, rows.mean()

        return jax.lax.scan(outer, rows, length=7)

    kernel = jax.ShapeDtypeStruct(
        (256, 256), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(FSDP))
    )
    rows = jax.ShapeDtypeStruct((512, 256), jnp.float32, sharding=batch_sharding(mesh))
    cost = compiled.read(jax.jit(function).lower(kernel, rows).compile())
    product = 2 * 64 * 256 * 256
    # Beside the products there are a tanh and a sum of each element.
    assert 21 * product <= cost.operations <= 1.02 * 21 * product
    assert cost.unknown_loops == ()
    assert cost.collectives["all-reduce"].count == 7
    gathers = cost.collectives["all-gather"]
    assert gathers.bytes == gathers.count * 256 * 256 * 4


@pytest.mark.slow
def test_temporaries_are_what_the_compiler_allocates(monkeypatch):
    pytest.importorskip("libtpu")
    shape = jax.ShapeDtypeStruct((4096, 4096), jnp.float32)

    def rows_and_columns(matrix):
        product = matrix @ matrix.T  # Sorted both ways, it has to be kept.
        return jnp.sort(product, 0)[-1], jnp.sort(product, 1)[:, -1]

    allocated = []
    read = compiled.read
    monkeypatch.setattr(
        compiled, "read", lambda *arguments: allocated.append(arguments[-1]) or read(*arguments)
    )
    cost = compiled.compile_cost(rows_and_columns, compiled.chip("v5e:1x1"), shape)
    assert cost.arguments == 2**26
    assert 2**26 <= cost.temporaries == allocated[0] - cost.arguments - cost.outputs < 4 * 2**26


def test_less_effort_is_asked_of_the_compiler(monkeypatch):
    asked = []
    monkeypatch.setattr(compiled, "read", lambda *arguments: None)
    lowered = types.SimpleNamespace(compile=asked.append)
    compiled.compile_program(lowered)
    compiled.compile_program(lowered, quick=True)
    found = [options.get("optimization_level") for options in asked]
    assert found == [None, EffortLevel.O1.value]


class DoesNotFit:
    """As a lowered program whose compilation says what libtpu says."""

    def __init__(self, reason):
        self.reason = reason

    def compile(self, options):
        raise jax.errors.JaxRuntimeError(
            f"RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: {self.reason}\n"
            "See https://openxla.org/xla/errors/error_1000 for more details."
        )


@pytest.mark.parametrize(
    ("reason", "needed", "available"),
    [
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (20.89G) "
            "exceeds available HBM (15.75G). HLO module: jit_f.",
            20.89,
            15.75,
        ),
        (
            "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 31.39G "
            "of 31.25G hbm. Exceeded hbm capacity by 146.43M.",
            31.39,
            31.25,
        ),
    ],
)
def test_what_does_not_fit_says_by_how_much(reason, needed, available):
    with pytest.raises(compiled.OutOfMemory, match=f"{needed} GiB .* {available} GiB") as caught:
        compiled.compile_program(DoesNotFit(reason))
    assert caught.value.needed == int(needed * 2**30)
