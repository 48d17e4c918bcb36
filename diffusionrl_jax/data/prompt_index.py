"""Keeps the unique prompts of a source on disk: made once in bounded memory, read by random access.

An index is one file: a header, the prompts' UTF-8 one after another in the order in which they
first occur, where each begins, and a 64-bit hash of each. Only the hashes (8 bytes a prompt) and
the places (8 bytes) are held in memory while it is made. Two prompts are taken to be the same if
their hashes are: among 10 million, two that differ have one hash with a probability of 3e-6.

The header has a digest of the whole file, which is checked when the file is opened. A prompt is
compared with its hash whenever it is read.
"""

import contextlib
import hashlib
import itertools
import os
import pathlib
import struct
import time
import uuid
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from absl import logging

from diffusionrl_jax.data.files import PARTIAL, as_path, clear_full_disk, in_bucket, matching
from diffusionrl_jax.mistakes import UserError

CACHE_VARIABLE = "DIFFUSIONRL_JAX_CACHE"
# It holds the magic, the numbers of rows and of prompts, the bytes of text, and the `_digest`.
HEADER = struct.Struct("<16sQQQ32s")
MAGIC = b"prompt index 2\n\0"
BYTES_AT_ONCE = 2**20
# Half-written indices that are older than this were left by programs that were killed.
ABANDONED_SECONDS = 86_400
ROWS_AT_ONCE = 8_192
SPLITS = ("train", "test")


def cache_folder() -> pathlib.Path:
    """Returns the folder of indices: $DIFFUSIONRL_JAX_CACHE, or .cache/diffusionrl_jax at home.

    Raises:
      UserError: it is not a local folder.
    """
    text, name = os.environ.get(CACHE_VARIABLE), f"${CACHE_VARIABLE}"
    folder = as_path(text or "~/.cache/diffusionrl_jax", name if text else f"{name} (not set)")
    if in_bucket(folder):
        raise UserError(f"{name}={text} is in a bucket: name a folder on a local disk.")
    return pathlib.Path(folder)


def hash_prompt(prompt: bytes) -> bytes:
    """Returns 8 bytes of BLAKE2b, the same on every machine and in every release of Python."""
    return hashlib.blake2b(prompt, digest_size=8).digest()


def hashes_of(prompts: Iterable[bytes]) -> np.ndarray:
    """Returns the `hash_prompt` of each prompt, uint64 [n]."""
    return np.frombuffer(b"".join(map(hash_prompt, prompts)), "<u8")


class PromptIndex(Sequence[str]):
    """The prompts of an index file, of which only what is asked for is read.

    Args:
      path: a file that `write_index` wrote.

    Attributes:
      rows: how many prompts the source had, blank ones left out and duplicates counted.
      hashes: the prompts' hashes, uint64 [n], mapped from the file.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it is not a whole index.
    """

    def __init__(self, path: str | os.PathLike):
        with open(path, "rb") as file:
            header = file.read(HEADER.size)
        self._broken = (
            f"The prompt index {path} is damaged, or of an earlier version: remove it, and it is"
            " made again."
        )
        if len(header) < HEADER.size or header[: len(MAGIC)] != MAGIC:
            raise UserError(self._broken)
        _, self.rows, count, size, digest = HEADER.unpack(header)
        tables = _aligned(HEADER.size + size)
        if os.path.getsize(path) != tables + 8 * (2 * count + 1):
            raise UserError(self._broken)
        # It is read, and not mapped: a map's pages would count as this process's memory.
        self._file = open(path, "rb", buffering=0)
        content = hashlib.sha256()
        self._file.seek(HEADER.size)
        while part := self._file.read(BYTES_AT_ONCE):
            content.update(part)
        if digest != _digest(self.rows, count, size, content):
            raise UserError(self._broken)
        self._begins = np.memmap(path, "<u8", "r", tables, count + 1)
        begin = tables + 8 * (count + 1)
        self.hashes = np.memmap(path, "<u8", "r", begin, count) if count else np.empty(0, "<u8")

    def __len__(self) -> int:
        return len(self._begins) - 1

    def __getitem__(self, index: int) -> str:
        """Returns a prompt.

        Raises:
          UserError: the file has changed since it was opened.
        """
        begin, end = self._begins[index : index + 2].tolist()
        text = os.pread(self._file.fileno(), max(0, end - begin), HEADER.size + begin)
        if hash_prompt(text) != self.hashes[index].tobytes():
            raise UserError(self._broken)
        return text.decode("utf-8")


def write_index(rows: Iterable[str], path: str | os.PathLike) -> None:
    """Writes the unique prompts among `rows` to a file, which is whole or not there.

    Args:
      rows: prompts, none of them blank.
      path: the file. An old one is replaced.

    Raises:
      OSError: the disk is full; what is there stays.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f"{uuid.uuid4().hex}{PARTIAL}")
    lengths, hashes = [], []
    known = []  # It holds sorted runs of hashes, each more than twice as long as the next.
    total, size, rows = 0, 0, iter(rows)
    content = hashlib.sha256()
    try:
        with clear_full_disk(path), partial.open("wb") as file:
            file.write(bytes(HEADER.size))
            while texts := [text.encode() for text in itertools.islice(rows, ROWS_AT_ONCE)]:
                total += len(texts)
                every = hashes_of(texts)
                found, first = np.unique(every, return_index=True)
                seen = [_contains(run, found) for run in known]
                fresh = np.sort(first[~np.any(seen, axis=0)] if seen else first)
                new = [texts[index] for index in fresh]
                lengths.append(np.array([len(text) for text in new], np.uint64))
                hashes.append(every[fresh])
                file.writelines(new)
                content.update(b"".join(new))
                size += int(lengths[-1].sum())
                known.append(np.sort(every[fresh]))
                while len(known) > 1 and len(known[-2]) <= 2 * len(known[-1]):
                    known[-2:] = [np.sort(np.concatenate(known[-2:]), kind="stable")]
            begins = np.concatenate([np.zeros(1, np.uint64), *lengths]).cumsum(dtype="<u8")
            for part in (
                bytes(_aligned(HEADER.size + size) - HEADER.size - size),
                begins.data,
                np.concatenate([np.empty(0, "<u8"), *hashes]).data,
            ):
                file.write(part)
                content.update(part)
            file.seek(0)
            count = len(begins) - 1
            digest = _digest(total, count, size, content)
            file.write(HEADER.pack(MAGIC, total, count, size, digest))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def open_index(name: str, fingerprint: str, rows: Callable[[], Iterable[str]]) -> PromptIndex:
    """Opens the index of a source, from the cache folder, and makes it there first if need be.

    Args:
      name: the source's name, for messages.
      fingerprint: a name of letters and digits that tells the source's content from any other.
      rows: begins to read the source's prompts.

    Raises:
      OSError: the cache folder can't be written; the message says how to choose another.
      UserError: `rows` raises it.
    """
    path = cache_folder() / f"{fingerprint}.prompts"
    if path.exists():
        try:
            return PromptIndex(path)
        except ValueError as error:
            logging.warning("%s", error)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f"{uuid.uuid4().hex}{PARTIAL}")
        probe.touch()
        probe.unlink()
        for left in matching(path.parent, f"*{PARTIAL}"):
            # Another process may have moved its own, or removed it too, since they were listed.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.stat().mtime > ABANDONED_SECONDS:
                    left.unlink()
    except OSError as error:
        raise type(error)(
            f"Cannot write the cache folder {path.parent} ({error.strerror}): set {CACHE_VARIABLE}"
            " to a folder on a local disk."
        ) from None
    write_index(rows(), path)
    index = PromptIndex(path)
    logging.info("%s: %d prompts, %d of them unique.", name, index.rows, len(index))
    return index


def held_out(hashes: np.ndarray, count: int, split: str, name: str) -> np.ndarray:
    """Returns which prompts belong to a split. The test's are those of the smallest hashes.

    The choice depends on the set of prompts alone, not on their order or their number of copies.

    Args:
      hashes: the prompts' hashes, uint64 [n], all different.
      count: how many prompts are held out.
      split: "train" (all but those) or "test" (only those).
      name: the source's name, for messages.

    Returns:
      The prompts' indices in ascending order, int64.

    Raises:
      UserError: the split is unknown, or one of the two would be empty.
    """
    if split not in SPLITS:
        raise UserError(f'{name}: unknown split {split!r}: choose "train" or "test".')
    if not 0 <= count < len(hashes) or (split == "test" and not count):
        raise UserError(
            f"{name}: cannot use split={split} with held_out={count} of {len(hashes)} different"
            f" prompts: hold out at least 1 (to test) and fewer than {len(hashes)}."
        )
    is_test = np.zeros(len(hashes), bool)
    if count:
        is_test[np.argpartition(hashes, count - 1)[:count]] = True
    return np.flatnonzero(is_test == (split == "test"))


class Chosen(Sequence[str]):
    """Some of the prompts of a sequence, by index."""

    def __init__(self, prompts: Sequence[str], indices: np.ndarray):
        self._prompts, self._indices = prompts, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> str:
        return self._prompts[int(self._indices[index])]


def _contains(run: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns which values a sorted run of hashes contains, bool [n]."""
    if not len(run):
        return np.zeros(len(values), bool)
    return run[np.minimum(np.searchsorted(run, values), len(run) - 1)] == values


def _digest(rows: int, count: int, size: int, content) -> bytes:
    """Returns the digest of the header's numbers and of what follows the header.

    Args:
      rows, count, size: the header's numbers.
      content: the SHA-256 of what follows.
    """
    numbers = struct.pack("<QQQ", rows, count, size)
    return hashlib.sha256(numbers + content.digest()).digest()


def _aligned(size: int) -> int:
    """Returns the next multiple of 8."""
    return -(-size // 8) * 8
