import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusionrl_jax.distributed import digests as module
from diffusionrl_jax.distributed.digests import digests, not_finite


def digest(array):
    (found,) = digests({"x": array}).values()
    return found


@pytest.fixture(params=["on the host", "on devices"])
def place(request, monkeypatch):
    """Both ways in which a digest is computed."""
    if request.param == "on devices":
        monkeypatch.setattr(module, "LEAST_BYTES_ON_DEVICES", 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool"])
def test_any_flipped_bit_is_seen(dtype, place):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rng = np.random.default_rng(0)
    is_bool = dtype == np.dtype(bool)
    values = rng.integers(0, 2, (3, 5)) if is_bool else rng.standard_normal((3, 5)) * 50
    array = values.astype(dtype)
    found = {digest(jnp.asarray(array))}
    bits = 1 if is_bool else 8 * dtype.itemsize
    for element in range(array.size):
        for bit in range(bits):
            flipped = array.copy()
            flipped.view(np.uint8).reshape(-1)[element * dtype.itemsize + bit // 8] ^= 1 << bit % 8
            found.add(digest(jnp.asarray(flipped)).removesuffix(module.NOT_FINITE))
    assert len(found) == 1 + array.size * bits


def test_moved_elements_are_seen(place):
    array = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    arrangements = [array, array[::-1], array[:, ::-1], array.T, np.roll(array, 1)]
    assert len({digest(jnp.asarray(each)) for each in arrangements}) == len(arrangements)


def test_the_mesh_is_of_no_account(monkeypatch):
    array = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    expected = digest(array)
    monkeypatch.setattr(module, "LEAST_BYTES_ON_DEVICES", 0)
    for shape, spec in (((8,), P("a")), ((2, 4), P("b", "a")), ((4, 2), P(None, ("a", "b")))):
        mesh = Mesh(np.array(jax.devices()).reshape(shape), ("a", "b")[: len(shape)])
        assert digest(jax.device_put(array, NamedSharding(mesh, spec))) == expected


def test_all_that_a_state_may_hold():
    key = jax.random.key(3)
    found = digests(
        {"key": key, "number": 7, "empty": np.zeros((0, 3)), "none": None, "wide": np.ones(3)}
    )
    assert set(found) == {"key", "number", "empty", "wide"}
    assert found["key"] == digest(np.asarray(jax.random.key_data(key)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_what_is_not_finite_is_named(value, dtype, place):
    good, bad = np.ones((2, 3), dtype), np.ones((2, 3), dtype)
    bad[1, 2] = value
    arrays = jnp.asarray if dtype is not np.float64 else np.asarray
    tree = {"layer": {"good": arrays(good), "bad": arrays(bad)}, "count": jnp.int32(2**31 - 1)}
    assert not_finite(digests(tree)) == ["layer/bad"]
