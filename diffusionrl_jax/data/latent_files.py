"""The files of a folder of cached latents, and how they are known to be what was written.

Each file is a safetensors file. It holds the pictures' fields, [pictures, ...] each, and a digest
of every picture, which is of all its fields and of its number in the source. The index has the
files' sizes, a digest of each file's header, and one of itself. A bit that has changed anywhere is
so found where it is read.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import IO, Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from diffusionrl_jax.data.stored_tensors import StoredTensor, read_header
from diffusionrl_jax.mistakes import UserError

INDEX = "index.json"
# What lies in a folder depends on how pictures and texts are read, too: one more for each change of
# these. Before 2, what is transparent was not put on one colour, and some texts had other tokens.
VERSION = 2
COMMAND = "python -m diffusionrl_jax.cache_latents"
READERS = 16
DIGESTS = "digest"
# So many bytes of a SHA-256 are enough to find damage. They are held in memory.
DIGEST_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Header:
    """What the header of a file says.

    Attributes:
      fields: where each field of the pictures lies, [pictures, ...].
      about: the file's metadata.
      digests: uint8 [pictures, DIGEST_BYTES].
      digest: the digest of the header's own bytes, in hexadecimal.
    """

    fields: Mapping[str, StoredTensor]
    about: Mapping[str, str]
    digests: np.ndarray
    digest: str

    def begin_digest(self, picture: int):
        """Begins the digest of a picture of this file; see the function of this name."""
        return begin_digest(self.fields, self.about, picture)

    def fits(self, row: int, digest) -> bool:
        """Returns whether a picture's digest is the file's own."""
        return digest.digest()[:DIGEST_BYTES] == self.digests[row].tobytes()


def file_name(number: int, count: int) -> str:
    """Returns the name of the safetensors file `number` of `count`, from 0."""
    return f"latents-{number:05d}-of-{count:05d}.safetensors"


def file_paths(folder: epath.Path, count: int) -> list[epath.Path]:
    """Returns the paths of all `count` safetensors files of a folder, in order."""
    return [folder / file_name(number, count) for number in range(count)]


def size(path: epath.Path) -> int | None:
    """Returns the bytes of a file, or None if it is not there."""
    try:
        return path.stat().length
    except FileNotFoundError:
        return None


def open_header(path: epath.Path) -> Header:
    """Reads the header of a file, and its digests.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it is not a whole file of latents.
    """
    tensors, about = read_header(path)
    with path.open("rb") as file:
        length = file.read(8)
        head = length + file.read(int.from_bytes(length, "little"))
    ends = [tensor.start + tensor.nbytes for tensor in tensors.values()]
    counts = {tensor.shape[:1] for tensor in tensors.values()}
    stored = tensors.pop(DIGESTS, None)
    digests = None if stored is None else np.asarray(stored)
    if (
        digests is None
        or (digests.dtype, *digests.shape[1:]) != (np.uint8, DIGEST_BYTES)
        or len(counts) != 1
        or path.stat().length != max(ends)
    ):
        raise UserError(f"{path} is not a whole file of latents.")
    return Header(tensors, about, digests, hashlib.sha256(head).hexdigest())


def begin_digest(fields: Mapping[str, Any], about: Mapping[str, str], picture: int):
    """Begins the SHA-256 of a picture, with its number and the kinds of its fields.

    The bytes of the picture's fields are to be added, in the order of the fields' names.

    Args:
      fields: arrays [pictures, ...], of which the dtypes and shapes count.
      about: the file's metadata.
      picture: the picture's number in the source.
    """
    kinds = {field: [array.dtype.name, array.shape[1:]] for field, array in fields.items()}
    return hashlib.sha256(json.dumps([dict(about), picture, kinds], sort_keys=True).encode())


def digests(arrays: Mapping[str, np.ndarray], about: Mapping[str, str], first: int) -> np.ndarray:
    """Returns the digests of pictures, uint8 [pictures, DIGEST_BYTES].

    Args:
      arrays: the pictures' fields, [pictures, ...] each.
      about: the file's metadata.
      first: the number of the first picture in the source.
    """
    found = []
    for row in range(len(next(iter(arrays.values())))):
        digest = begin_digest(arrays, about, first + row)
        for _, values in sorted(arrays.items()):
            digest.update(values[row].tobytes())
        found.append(np.frombuffer(digest.digest()[:DIGEST_BYTES], np.uint8))
    return np.stack(found)


def read_row(file: IO[bytes], tensor: StoredTensor, row: int) -> bytes:
    """Reads a picture's field. It is fewer bytes than the field has if the file ends before."""
    length = tensor.nbytes // tensor.shape[0]
    file.seek(tensor.start + length * row)
    return file.read(length)


def read_index(path: epath.Path) -> dict[str, Any]:
    """Reads the index, and compares it with its digest.

    Returns:
      The index without its digest.

    Raises:
      UserError: it is damaged, something else, or of an earlier version.
    """
    try:
        index = json.loads(path.read_text())
        digest, version = index.pop("digest", None), index.get("version")
        if version == VERSION and digest != index_digest(index):
            raise ValueError
        if not index.keys() >= {"model", "pictures"}:
            raise ValueError
    except (AttributeError, TypeError, ValueError):
        raise UserError(
            f"{path} is not what {COMMAND} wrote: remove it, and start that again."
        ) from None
    if version != VERSION:
        raise UserError(
            f"{path}: the latents are of version {version or 1}, which read transparent pictures "
            f"and some texts otherwise than version {VERSION} of here: start {COMMAND} again, "
            "which makes them anew."
        )
    return index


def index_digest(index: Mapping[str, Any]) -> str:
    """Returns the digest of the rest of an index, in hexadecimal."""
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def are_whole(
    paths: Sequence[epath.Path | None], about: Mapping[str, str], pictures_per_file: int
) -> np.ndarray:
    """Returns whether each file is what was written.

    All bytes are read. Each of several processes reads its share of the files, and all must call.

    Args:
      paths: the paths of all files, with None for one that is not there.
      about: the metadata that they are to have.
      pictures_per_file: how many pictures each file but the last has.

    Returns:
      bool [files]; also False for files of an earlier version.

    Raises:
      UserError: a file is of another model or of other pictures.
    """

    def is_whole(number: int) -> bool:
        header, path = headers[number], paths[number]
        if header is None or path is None:
            return False
        return _is_whole(path, header, number * pictures_per_file)

    with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        matching_header = lambda number: _matching_header(
            paths[number], about, number * pictures_per_file
        )
        headers = list(readers.map(matching_header, range(len(paths))))
        own = range(jax.process_index(), len(paths), jax.process_count())
        whole = np.ones(len(paths), bool)
        whole[own] = list(readers.map(is_whole, own))
    if jax.process_count() > 1:
        whole = np.all(multihost_utils.process_allgather(whole), axis=0)
    return whole


def _matching_header(
    path: epath.Path | None, about: Mapping[str, str], first: int
) -> Header | None:
    """Returns the header of a file of this version that may be whole, or else None."""
    if path is None:
        return None
    try:
        header = open_header(path)
    except ValueError:
        return None
    if dict(header.about) == dict(about):
        return header
    versions = {values.get("made_from", "").partition(" ")[0] for values in (about, header.about)}
    if len(versions) == 1 and _is_whole(path, header, first, rows=1):
        raise other_latents(path)
    return None  # The metadata is damaged, or of an earlier version.


def _is_whole(path: epath.Path, header: Header, first: int, rows: int | None = None) -> bool:
    """Returns whether a file's pictures are as written. The first has the number `first`."""
    chosen = range(len(header.digests))[:rows]
    found = [header.begin_digest(first + row) for row in chosen]
    with path.open("rb") as file:
        for _, tensor in sorted(header.fields.items()):
            for row in chosen:
                found[row].update(read_row(file, tensor, row))
    return all(header.fits(row, found[row]) for row in chosen)


def other_latents(path: epath.Path) -> UserError:
    """Returns the error that a file is of other latents than its folder's are to be."""
    return UserError(
        f"{path.parent} holds latents of another model or other pictures, or with other embeddings"
        f" or none ({path.name}): name another folder, or remove this one."
    )
