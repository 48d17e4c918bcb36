"""A loop of known average turns: what it computes, and what the counts of operations make of it."""

import jax
import jax.numpy as jnp
import pytest

from diffusionrl_jax.costs import program_text
from diffusionrl_jax.costs.mathematics import operations
from diffusionrl_jax.distributed.loops import average_turns, loop

SIZE, TURNS = 8, 2.5


def powers(matrix, first):
    """A loop that ends at 5, in a scan of three turns."""

    def turn(value, _):
        times = lambda _, value: value @ matrix
        return loop(first, 5, times, value, average=TURNS), None

    return jax.lax.scan(turn, jnp.eye(SIZE), None, length=3)[0]


@pytest.fixture(scope="module")
def program():
    matrix, first = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32), jnp.int32(2)
    return jax.jit(powers).lower(matrix, first).compile()


def test_it_turns_from_first_to_last(program):
    matrix = jnp.diag(jnp.full(SIZE, 2.0))
    assert (jnp.diag(program(matrix, jnp.int32(2))) == 2.0 ** (3 * 3)).all()
    assert (jnp.diag(program(matrix, jnp.int32(5))) == 1).all()


def test_operations_are_counted_by_the_average(program):
    product = 2 * SIZE**3
    matrix, first = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32), jnp.int32(2)
    assert operations(powers, matrix, first) == 3 * TURNS * product
    counted, _ = program_text.count(program_text.Program(program.as_text()))
    # Counters are added to, too.
    assert 3 * TURNS * product <= counted < 3 * TURNS * product + 200


def test_scopes():
    assert average_turns("jit(f)/while/body/turns_on_average_25_50") == 25.5
    assert average_turns("turns_on_average_0_07") == 0.07
    assert average_turns("jit(f)/turns_on_average_25_50/while/body") is None
    assert average_turns("") is None
