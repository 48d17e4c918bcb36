"""Stored tensors: what is not finite is found, and files are as safetensors writes them."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

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


def tensors():
    """One tensor of each dtype and two of one, a scalar, an empty one, and names to be escaped."""
    rng = np.random.default_rng(0)
    made = {
        f"a.{code}": rng.integers(0, 2, (2, 3)).astype(dtype)
        for code, dtype in stored_tensors.DTYPES.items()
    }
    more = {"b": np.float32([1.5]), '\u00e9"': np.asarray(2.5, np.float16), "c": np.zeros((0, 4))}
    return {**more, **made}


def write(path, made):
    kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in made.items()}
    stored_tensors.write_tensors(epath.Path(path), kinds, made.__getitem__, {"format": "pt"})


@pytest.mark.parametrize("in_bucket", [False, True])
def test_a_written_file_is_the_librarys_to_the_byte(in_bucket, tmp_path, bucket):
    path = epath.Path(bucket if in_bucket else tmp_path) / "x.safetensors"
    write(path, tensors())
    assert path.read_bytes() == safetensors.numpy.save(tensors(), metadata={"format": "pt"})
    write(path, {})
    assert path.read_bytes() == safetensors.numpy.save({}, metadata={"format": "pt"})


def test_a_tensor_is_written_by_rows_whatever_its_strides(tmp_path):
    made = np.arange(12.0).reshape(3, 4)
    write(tmp_path / "x", {"a": made.T, "b": made[:, ::2]})
    read = safetensors.numpy.load_file(tmp_path / "x")
    np.testing.assert_array_equal(read["a"], made.T)
    np.testing.assert_array_equal(read["b"], made[:, ::2])


@pytest.mark.parametrize("in_bucket", [False, True])
def test_no_file_is_left_half_written(in_bucket, tmp_path, bucket):
    path = epath.Path(bucket if in_bucket else tmp_path) / "x"
    write(path, {"a": np.ones(2)})
    whole = path.read_bytes()
    with pytest.raises(KeyError, match="b"):
        kinds = dict.fromkeys("ab", ((2,), np.float64))
        stored_tensors.write_tensors(path, kinds, {"a": np.zeros(2)}.__getitem__, {})
    if in_bucket:
        assert not path.exists()
    else:
        assert path.read_bytes() == whole
        assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["x"]
