"""Reads and writes safetensors files, one tensor at a time.

A file is eight bytes with the header's length, the header (JSON, in which each name has a dtype, a
shape and a place) and the tensors' bytes. The libraries either map the whole file into memory,
which counts as resident and does not work on `gs://`, or read it whole, and to write one they take
all of it at once. Here each tensor is one range of bytes, read from wherever `epath` reads, and
written to wherever it writes.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from diffusionrl_jax.data.files import in_bucket, whole_file
from diffusionrl_jax.mistakes import UserError

# In the order in which they lie in a file, so that none begins amid another's numbers.
DTYPES = {
    "I64": np.int64,
    "F64": np.float64,
    "F32": np.float32,
    "I32": np.int32,
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
FLOATING = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
# The format allows so many. A file that states more is of another kind.
MAXIMUM_HEADER_BYTES = 100_000_000
MAXIMUM_RANK = 64  # NumPy allows no more.
# So many numbers are looked at together, since so many stay in the cache.
BLOCK = 2**18


def is_finite(tensor: np.ndarray) -> bool:
    """Returns whether all numbers of a tensor are finite; integers always are.

    It looks at their bits, in a tenth of the time that `np.isfinite` takes for half precision:
    without the sign, infinity's bits are the largest below those of NaN.
    """
    if tensor.dtype.type not in FLOATING:
        return True
    unsigned = np.dtype(f"u{tensor.dtype.itemsize}")
    infinity = np.array(np.inf, tensor.dtype).view(unsigned)
    without_sign = np.iinfo(unsigned).max >> 1
    bits = tensor.reshape(-1).view(unsigned)
    blocks = (bits[start : start + BLOCK] for start in range(0, bits.size, BLOCK))
    return all((block & without_sign).max() < infinity for block in blocks)


def check_finite(tensor: np.ndarray, name: str, source) -> np.ndarray:
    """Returns the tensor as it is, if all its numbers are finite.

    Raises:
      UserError: a number is NaN or infinite; it names the tensor and its source.
    """
    if not is_finite(tensor):
        raise UserError(
            f"Tensor {name!r} in {source} has numbers that are NaN or infinite ({tensor.dtype}): "
            "the weights are damaged or were saved by a run that had diverged; use others."
        )
    return tensor


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file.

    Attributes:
      file: the safetensors file.
      name: the tensor's name there.
      shape, dtype: its shape and dtype as stored, in PyTorch's layout.
      start: the place of its first byte in the file.
    """

    file: epath.Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int

    @property
    def nbytes(self) -> int:
        """The number of its bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """Reads the tensor, which is one range of bytes.

        Raises:
          UserError: the file was cut meanwhile, or a number is not finite.
        """
        with self.file.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.nbytes)
        if len(data) != self.nbytes:
            raise UserError(f"{self.file} was cut short meanwhile: copy or download it again.")
        tensor = np.frombuffer(data, self.dtype).reshape(self.shape)
        check_finite(tensor, self.name, self.file)
        return tensor if dtype is None else tensor.astype(dtype, copy=False)


def read_header(path: epath.Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Reads where the tensors of a safetensors file lie, and the file's metadata.

    None of the tensors is read.

    Args:
      path: a file, local or remote (`gs://`).

    Returns:
      Where each tensor lies, by its name; and the metadata, which may be empty.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: the file is truncated or corrupt, or holds a dtype that is not supported, or a
        tensor is there twice, or lies over another.
    """
    size = path.stat().length
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAXIMUM_HEADER_BYTES, size - 8):
                raise UserError(f"its header would have {length} bytes")
            header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise UserError("its metadata are no strings")
        found = {
            name: _stored(path, name, entry, 8 + length, size) for name, entry in header.items()
        }
        _check_places(header, size - 8 - length)
    # JSON raises RecursionError at lists too deep within lists.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); it is truncated or corrupt: "
            "copy or download it again."
        ) from error
    unsupported = [name for name, tensor in found.items() if tensor is None]
    if unsupported:
        raise UserError(
            f"Tensor {unsupported[0]!r} in {path} has dtype {header[unsupported[0]]['dtype']}, "
            f"which is not supported; store it as one of {sorted(DTYPES)}."
        )
    return {name: tensor for name, tensor in found.items() if tensor is not None}, metadata


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object, and refuses one that has a name twice.

    Readers differ in which of the two entries they take.
    """
    result = {}
    for name, value in pairs:
        if name in result:
            raise UserError(f"its header has {name!r} twice")
        result[name] = value
    return result


def _check_places(header: Mapping[str, Any], size: int) -> None:
    """Refuses tensors that do not lie one after another and fill the file, as the format asks."""
    end = 0
    places = {name: entry["data_offsets"] for name, entry in header.items()}
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        begin, following = place
        if begin != end:
            raise UserError(f"tensor {name!r} begins at byte {begin}, where {end} comes next")
        end = following
    if end != size:
        raise UserError(f"its tensors end at byte {end} of the data's {size}")


def _whole(number: Any) -> int:
    """Returns a number, and refuses one that is no whole number of 0 or more."""
    if type(number) is not int or number < 0:
        raise UserError(f"{str(number)[:40]} is no whole number of 0 or more")
    return number


def _stored(path, name, entry, offset, size) -> StoredTensor | None:
    """Returns one entry of the header, checked; None where the dtype is not known."""
    begin, end = map(_whole, entry["data_offsets"])
    if not begin <= end <= size - offset:
        raise UserError(f"tensor {name!r} ends at byte {offset + end}, the file at {size}")
    if entry["dtype"] not in DTYPES:
        return None
    shape = tuple(map(_whole, entry["shape"]))
    if len(shape) > MAXIMUM_RANK:
        raise UserError(f"tensor {name!r} has {len(shape)} axes")
    tensor = StoredTensor(path, name, shape, np.dtype(DTYPES[entry["dtype"]]), offset + begin)
    if tensor.nbytes != end - begin:
        raise UserError(f"tensor {name!r} has {end - begin} bytes, its shape {tensor.nbytes}")
    return tensor


def write_tensors(
    path: epath.Path,
    kinds: Mapping[str, tuple[Sequence[int], Any]],
    tensor: Callable[[str], np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes a safetensors file of which one tensor at a time is in memory.

    Its bytes are those that the safetensors library writes. What was there before stays where the
    file cannot be written whole; in a bucket it is then removed.

    Args:
      path: the file, local or remote. Its folder exists.
      kinds: the shape and the dtype of each tensor, by its name.
      tensor: takes a name and returns the tensor, of that shape and dtype.
      metadata: the file's metadata.
    """
    codes = {np.dtype(kind): code for code, kind in DTYPES.items()}
    order = list(codes)
    names = sorted(kinds, key=lambda name: (order.index(np.dtype(kinds[name][1])), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        shape, dtype = kinds[name]
        begin, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        code = codes[np.dtype(dtype)]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as place:
        try:
            with place.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for name in names:
                    # Bytes are in the order of rows, whatever the tensor's strides are.
                    numbers = np.asarray(tensor(name), order="C")
                    file.write(numbers.reshape(-1).view(np.uint8).data)
        except BaseException:
            if in_bucket(place):  # To close a file there is to keep what was written.
                place.unlink(missing_ok=True)
            raise
