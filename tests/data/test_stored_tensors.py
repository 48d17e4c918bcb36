"""Numbers that are not finite are found in stored tensors."""

import ml_dtypes
import numpy as np
import pytest

from diffusionrl_jax.data import stored_tensors


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("place", [0, 7, -1])
def test_what_is_not_finite_is_found(dtype, place, monkeypatch):
    """As NumPy has it, whatever the bits and the block."""
    monkeypatch.setattr(stored_tensors, "BLOCK", 5)
    rng = np.random.default_rng(0)
    for number in (np.nan, -np.nan, np.inf, -np.inf, np.finfo(np.float16).max, -0.0, 1e-7):
        tensor = (1e4 * rng.standard_normal((6, 4))).astype(dtype)
        tensor.reshape(-1)[place] = number
        expected = bool(np.isfinite(tensor.astype(np.float64)).all())
        assert stored_tensors.is_finite(tensor) is stored_tensors.is_finite(tensor.T) is expected
    largest = np.full(3, ml_dtypes.finfo(dtype).max, dtype)
    assert stored_tensors.is_finite(largest) and stored_tensors.is_finite(-largest)
    payload = np.full(2, -1, f"i{np.dtype(dtype).itemsize}").view(dtype)  # A NaN, all bits set.
    assert not stored_tensors.is_finite(payload)


def test_integers_and_empty_tensors_are_finite():
    for dtype in (np.int64, np.uint8, np.bool_):
        assert stored_tensors.is_finite(np.full(3, -1).astype(dtype))
    assert stored_tensors.is_finite(np.zeros((0, 4), np.float32))
    assert not stored_tensors.is_finite(np.float32(np.nan).reshape(()))
