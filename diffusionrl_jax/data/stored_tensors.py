"""A safetensors file, opened by its header alone and read one tensor at a time.

A file is eight bytes with the header's length, the header (JSON: name -> dtype, shape, place) and
the tensors' bytes. The libraries either map the whole file into memory, which counts as resident
and does not work on `gs://`, or read it whole; here each tensor is one range of bytes, read from
wherever `epath` reads.
"""

import dataclasses
import json
import math

import ml_dtypes
import numpy as np
from etils import epath

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# What the format allows; more is a file of another kind.
MAXIMUM_HEADER_BYTES = 100_000_000


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file.

    Attributes:
      file: the safetensors file.
      shape, dtype: as stored, in PyTorch's layout.
      start: its first byte in the file.
    """

    file: epath.Path
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """Reads it: one range of bytes."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.nbytes)
        tensor = np.frombuffer(data, self.dtype).reshape(self.shape)
        return tensor if dtype is None else tensor.astype(dtype, copy=False)


def read_header(path: epath.Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of one safetensors file, none of them read, and the file's metadata.

    Args:
      path: a local or remote (`gs://`) file.

    Returns:
      Name -> where the tensor lies; and the metadata, which may be empty.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is truncated or corrupt, or holds a dtype that is not supported.
    """
    size = path.stat().length
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAXIMUM_HEADER_BYTES, size - 8):
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        tensors = {
            name: _stored(path, name, entry, 8 + length, size) for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); it is truncated or corrupt: "
            "copy or download it again."
        ) from error
    unsupported = [name for name, tensor in tensors.items() if tensor is None]
    if unsupported:
        raise ValueError(
            f"Tensor {unsupported[0]!r} in {path} has dtype {header[unsupported[0]]['dtype']}, "
            f"which is not supported; store it as one of {sorted(DTYPES)}."
        )
    return tensors, metadata


def _stored(path, name, entry, offset, size) -> StoredTensor | None:
    """One entry of the header, checked; None where the dtype is not known."""
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= size - offset:
        raise ValueError(f"tensor {name!r} ends at byte {offset + end}, the file at {size}")
    if entry["dtype"] not in DTYPES:
        return None
    dtype = np.dtype(DTYPES[entry["dtype"]])
    tensor = StoredTensor(path, tuple(map(int, entry["shape"])), dtype, offset + begin)
    if tensor.nbytes != end - begin:
        raise ValueError(f"tensor {name!r} has {end - begin} bytes, its shape {tensor.nbytes}")
    return tensor
