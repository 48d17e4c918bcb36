"""What of a state a checkpoint holds, by NumPy's own numbers."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from diffusionrl_jax.distributed.digests import digests
from diffusionrl_jax.runs import checkpoint_states
from diffusionrl_jax.runs.checkpoint_records import DamagedError


@pytest.fixture
def state():
    return {"a": jnp.arange(6.0).reshape(2, 3), "b": [jnp.ones(4, jnp.bfloat16), jnp.int32(7)]}


def test_the_size_is_numpys(state):
    expected = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state))
    shapes = jax.eval_shape(lambda: state)
    assert checkpoint_states.size_of(state) == checkpoint_states.size_of(shapes) == expected


def test_a_number_that_has_changed_is_found(state):
    record = {"digests": digests(state)}
    checkpoint_states.check_digests(state, record)
    checkpoint_states.check_digests(state | {"a": ocp.PLACEHOLDER}, record)
    changed = state | {"a": state["a"].at[1, 2].add(1e-6)}
    with pytest.raises(DamagedError, match="a.* is not what was saved, by its digest; 1 of 3"):
        checkpoint_states.check_digests(changed, record)
    checkpoint_states.check_digests(changed, None)
    for number in (np.nan, np.inf):
        broken = state | {"a": state["a"].at[0, 0].set(number)}
        with pytest.raises(DamagedError, match="a.* is not finite"):
            checkpoint_states.check_digests(broken, None)


def test_arrays_without_elements_are_left_out_and_made_anew(state):
    whole = state | {"c": jnp.zeros((0, 3), jnp.bfloat16)}
    saved = checkpoint_states.without_empty(whole)
    assert saved["c"] is None
    expected = jax.eval_shape(lambda: whole)
    restored = {
        name: checkpoint_states.fill_empty(expected[name], saved[name]) for name in ("a", "c")
    }
    assert restored["a"] is saved["a"]
    assert (restored["c"].shape, restored["c"].dtype) == ((0, 3), jnp.bfloat16)
    assert checkpoint_states.fill_empty(expected["a"], ocp.PLACEHOLDER) is ocp.PLACEHOLDER
    assert checkpoint_states.fill_empty(None, saved["a"]) is saved["a"]


@pytest.mark.parametrize("other", [np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float16)])
def test_an_array_of_another_kind_is_damage(other):
    expected = types.SimpleNamespace(shape=(2, 3), dtype=jnp.dtype("float32"))
    kind = rf"{other.dtype} \({other.shape[0]}, {other.shape[1]}\)"
    with pytest.raises(DamagedError, match=rf"an array is {kind} instead of float32 \(2, 3\)"):
        checkpoint_states.fill_empty(expected, other)
