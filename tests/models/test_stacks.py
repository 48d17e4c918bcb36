"""Stacks of blocks against the blocks one after the other, whole and gathered on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusionrl_jax.distributed import mesh as mesh_rules
from diffusionrl_jax.distributed.gradients import mean_over_devices
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.distributed.shards import shards
from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.stacks import layer_paths, scan_blocks

LAYERS, WIDTH = 4, 8


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


# Over 4 devices kernels are split along their inputs, and the longer stack of biases by layers.
PARAMS = {"kernel": draw(LAYERS, WIDTH, WIDTH) / 3, "bias": draw(LAYERS, 3)}
ROWS = draw(8, WIDTH)


def block(params, rows):
    return rows + jnp.tanh(rows @ params["kernel"]) * params["bias"].sum()


def loss(params, rows, remat="none"):
    return jnp.square(scan_blocks(block, params, rows, remat)).mean()


def test_blocks_are_applied_in_order():
    rows = ROWS
    for layer in range(LAYERS):
        rows = block({name: array[layer] for name, array in PARAMS.items()}, rows)
    np.testing.assert_allclose(scan_blocks(block, PARAMS, ROWS), rows, rtol=1e-5)


@pytest.mark.parametrize("remat", ["none", "blocks", "full"])
def test_gathered_by_layers_the_gradient_is_the_same(remat, monkeypatch):
    monkeypatch.setattr(mesh_rules, "REPLICATED_BYTES", 16)
    mesh = make_mesh(4)
    marked = shards(PARAMS, mesh)
    assert (marked["kernel"].axis, marked["bias"].axis) == (1, 0)

    def function(whole, share):
        return jax.grad(loss)(whole, share, remat), {}

    def run(params, rows):
        return mean_over_devices(function, params, mesh, {})(shards(params, mesh), rows)

    gradients, _ = jax.jit(run)(PARAMS, ROWS)
    expected = jax.grad(loss)(PARAMS, ROWS)
    # Sums of some hundred numbers around 1, in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients, expected)
    # In the forward and in the backward loop a layer is gathered, and never all layers' kernels.
    program = jax.jit(run).lower(PARAMS, ROWS).as_text()
    assert f"tensor<{LAYERS}x{WIDTH // 4}x{WIDTH}xf32>" in program
    gathered = [line for line in program.splitlines() if "all_gather" in line]
    assert sum(f"-> tensor<{WIDTH}x{WIDTH}xf32>" in line for line in gathered) == 2
    assert not any(f"-> tensor<{LAYERS}x{WIDTH}x{WIDTH}xf32>" in line for line in gathered)


def test_names_of_layers():
    path = ("blocks_3_to_5", "attn", "to_out_0", "kernel")
    names = [weights.pytorch_name(layer) for layer in layer_paths(path)]
    assert names == [f"blocks.{layer}.attn.to_out.0.weight" for layer in (3, 4, 5)]
    assert layer_paths(("a", "kernel")) == (("a", "kernel"),)


def test_state_of_a_stack_is_that_of_its_layers():
    params = {"blocks_0_to_1": {"dense": {"kernel": draw(2, 3, 5), "bias": draw(2, 5)}}}
    state = weights.to_pytorch(params)
    assert {name: tensor.shape for name, tensor in state.items()} == {
        f"blocks.{layer}.dense.{leaf}": shape
        for layer in (0, 1)
        for leaf, shape in {"weight": (5, 3), "bias": (5,)}.items()
    }
    back = weights.to_flax(state, params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    with pytest.raises(ValueError, match="lacks 'blocks.1.dense.bias'"):
        weights.to_flax({k: v for k, v in state.items() if k != "blocks.1.dense.bias"}, params)
    with pytest.raises(ValueError, match=r"'blocks.1.dense.weight'.*has shape \(3, 5\)"):
        weights.to_flax({**state, "blocks.1.dense.weight": draw(3, 5)}, params)
