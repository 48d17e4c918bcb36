"""What the backward pass keeps: how often the attention's kernel runs, here interpreted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.models import attention
from diffusionrl_jax.models.rematerialisation import POLICIES

TOKENS = 128


@pytest.fixture
def gradient_and_kernels(monkeypatch):
    """The gradient of a block with attention, and how many kernels its program has."""
    monkeypatch.setattr(attention, "KERNEL_TOKENS", TOKENS)
    mesh = make_mesh(1)
    rows = jax.random.normal(jax.random.key(0), (1, TOKENS, 2, 8))

    def block(rows):
        query, key, value = jnp.sin(rows), jnp.cos(rows), jnp.tanh(rows)
        return attention.attend(query, key, value, scale=1.0, attention="splash", mesh=mesh)

    def evaluate(policy):
        function = jax.checkpoint(block, policy=POLICIES[policy]) if policy else block
        traced = jax.jit(jax.grad(lambda rows: jnp.square(function(rows)).sum())).trace(rows)
        # What nothing asks for stands in the trace, and is left out as it is compiled.
        asked_for, _ = partial_eval.dce_jaxpr(traced.jaxpr.jaxpr, [True])
        return traced.lower().compile()(rows), str(asked_for).count("pallas_call[")

    return evaluate


def test_attention_is_computed_again_only_in_full(gradient_and_kernels):
    expected, plain = gradient_and_kernels(None)
    # One forward, and two backward: one for the query, one for keys and values.
    assert plain == 3
    for remat, again in {"none": 0, "blocks": 0, "full": 1}.items():
        gradient, found = gradient_and_kernels(remat)
        assert found == plain + again
        np.testing.assert_array_equal(gradient, expected)


def test_blocks_keeps_little_else():
    """The sine and the others are computed again, as in full; with none they are kept."""

    def kept(policy):
        function = jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)).sum(), policy=POLICIES[policy])
        _, pull_back = jax.vjp(function, jnp.ones(1000))
        return sum(leaf.size for leaf in jax.tree.leaves(pull_back))

    assert kept("blocks") == kept("full") < kept("none")
