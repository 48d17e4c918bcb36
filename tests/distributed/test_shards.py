"""Split parameters that are gathered where they are used, against whole ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusionrl_jax.distributed import mesh as mesh_rules
from diffusionrl_jax.distributed.gradients import mean_over_devices
from diffusionrl_jax.distributed.mesh import make_mesh, parameter_sharding
from diffusionrl_jax.distributed.microbatch import map_microbatches
from diffusionrl_jax.distributed.shards import (
    add,
    apply_by_device,
    gather_shards,
    has_shards,
    keeps_all_but_gathered,
    shards,
)

SHAPE = (8, 3)


@pytest.fixture(autouse=True)
def split_small_parameters(monkeypatch):
    monkeypatch.setattr(mesh_rules, "REPLICATED_BYTES", 64)


def draw(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


PARAMS = {"dense": {"kernel": draw(*SHAPE), "bias": draw(3)}}
ROWS = draw(16, 8)


def loss(params, rows):
    """Of two products, so that the kernel is needed in the backward pass."""
    kernel, bias = params["dense"]["kernel"], params["dense"]["bias"]
    hidden = jnp.tanh(rows @ kernel + bias)
    # A transposed kernel would be another value, and kept.
    return jnp.square(jax.lax.dot_general(hidden, kernel, (((1,), (1,)), ((), ())))).mean()


def test_large_parameters_alone_are_marked():
    marked = shards(PARAMS, make_mesh(4), jnp.bfloat16)["dense"]
    assert marked["bias"] is PARAMS["dense"]["bias"]
    assert (marked["kernel"].axis, marked["kernel"].dtype) == (0, jnp.bfloat16)
    assert has_shards(marked) and not has_shards(PARAMS)
    assert not has_shards(shards(PARAMS, make_mesh(1), jnp.bfloat16))


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("fsdp", [2, 8])
def test_gradients_of_shards_are_those_of_the_whole(fsdp, recomputed):
    mesh = make_mesh(fsdp)

    def own(params, rows):
        assert params["dense"]["kernel"].array.shape == (8 // fsdp, 3)
        return loss(gather_shards(params, after=rows), rows)

    if recomputed:
        own = jax.checkpoint(own, policy=keeps_all_but_gathered)

    def function(whole, share):
        return jax.grad(own)(whole, share), {}

    def run(params, rows):
        return mean_over_devices(function, params, mesh, {})(shards(params, mesh), rows)

    gradients, _ = jax.jit(run)(PARAMS, ROWS)
    # Sums of some hundred numbers around 1, in another order.
    expected = jax.grad(loss)(PARAMS, ROWS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), gradients, expected)
    wanted = parameter_sharding(mesh, PARAMS)["dense"]["kernel"]
    assert gradients["dense"]["kernel"].sharding.is_equivalent_to(wanted, 2)
    program = str(jax.make_jaxpr(run)(PARAMS, ROWS))
    assert program.count("all_gather[") == 1 + recomputed
    assert program.count("tanh") == 1


def test_in_bfloat16_the_gradient_is_summed_in_float32():
    mesh = make_mesh(8)

    def function(whole, share):
        product = lambda params: (gather_shards(params)["kernel"] * share[0]).sum()
        return jax.grad(product)(whole), {}

    params = {"kernel": draw(*SHAPE)}
    # One device's is lost beside the others' 256, if they are added up in bfloat16.
    rows = np.float32([256] * 7 + [1]).reshape(8, 1)

    def run(params, rows):
        split = shards(params, mesh, jnp.bfloat16)
        return mean_over_devices(function, params, mesh, {})(split, rows)

    gradients, _ = jax.jit(run)(params, rows)
    np.testing.assert_array_equal(gradients["kernel"], np.full(SHAPE, (7 * 256 + 1) / 8))


def test_a_change_is_added_to_each_part():
    mesh, change = make_mesh(4), draw(3, 8).T
    kernel = PARAMS["dense"]["kernel"]

    def function(whole, share):
        kernel, change = whole

        def changed(change):
            return (gather_shards(add(kernel, change)) * share.mean()).sum()

        value, gradient = jax.value_and_grad(changed)(change)
        return gradient, {"sum": value}

    def run(kernel, change, rows):
        mean = mean_over_devices(function, change, mesh, {"sum": "mean"})
        return mean((shards({"kernel": kernel}, mesh)["kernel"], change), rows)

    gradient, scalars = jax.jit(run)(kernel, change, ROWS)
    np.testing.assert_allclose(gradient, np.full(SHAPE, ROWS.mean()), atol=1e-6)
    np.testing.assert_allclose(scalars["sum"], ((kernel + change) * ROWS.mean()).sum(), rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("fsdp", [1, 4])
def test_each_device_applies_a_function_to_its_own_rows(fsdp, parts):
    mesh = make_mesh(fsdp)

    def function(params, rows):
        def of_part(rows):
            kernel = gather_shards(params["dense"], after=rows)["kernel"]
            return rows @ kernel, jnp.full(len(rows), len(rows))

        return map_microbatches(of_part, rows, parts, mesh)

    apply = jax.jit(lambda: apply_by_device(function, shards(PARAMS, mesh), ROWS, mesh))
    products, together = apply()
    np.testing.assert_allclose(products, ROWS @ PARAMS["dense"]["kernel"], rtol=0, atol=1e-6)
    # Eight devices have two rows each.
    assert set(np.asarray(together)) == {16 // parts if fsdp == 1 else 2 // parts}
    one = apply_by_device(
        lambda params, rows: rows @ gather_shards(params)["dense"]["kernel"],
        *(shards(PARAMS, mesh), ROWS[:1], mesh),
        is_split=False,
    )
    np.testing.assert_allclose(one, ROWS[:1] @ PARAMS["dense"]["kernel"], rtol=0, atol=1e-6)
