"""Reads pairs of pictures that people chose between, from parquet files with Pick-a-Pic's columns.

A row has two pictures' files, jpg_0 and jpg_1, the caption that both were made for, and label_0 and
label_1: 1 and 0 for the picture that was chosen and the other one, or 0.5 twice where neither was.
"""

import contextlib
import functools
import hashlib
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from diffusionrl_jax.data.file_digests import file_digest
from diffusionrl_jax.data.files import as_path, matching
from diffusionrl_jax.data.pictures import read_picture
from diffusionrl_jax.data.sources import decode_text
from diffusionrl_jax.mistakes import UserError

LABELS = ("label_0", "label_1")
PICTURES = ("jpg_0", "jpg_1")
CAPTION = "caption"
# So many row groups are held, in which neighbours are looked for.
GROUPS_HELD = 2


class ChosenPictures(Sequence):
    """The pictures of all pairs of which one was chosen: the chosen one, the other, and so on.

    Files are digested and labels read at once, and pictures when they are asked for, a row group at
    a time. Pairs without a choice are left out.

    Args:
      name: a parquet file, or a folder of some, which are read in the order of their names.
      height, width: the size of every picture; see `pictures.fit`.
      field: what named the path, for messages.

    Attributes:
      fingerprint: tells these pictures from others.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: a file is not whole, lacks a column, or no pair has a choice.
    """

    def __init__(self, name: str, height: int, width: int, field: str):
        path = as_path(name, field)
        self._size = height, width
        self._paths = matching(path, "*.parquet") if path.is_dir() else [path]
        if not self._paths:
            raise UserError(f"{field}={name!r} holds no *.parquet: name a folder that does.")
        digest = hashlib.sha256(f"pairs {height}x{width}".encode())
        rows = []
        for number, file in enumerate(self._paths):
            digest.update(bytes.fromhex(file_digest(file)))
            for group, labels in enumerate(_labels(file)):
                chosen = np.flatnonzero(labels[:, 0] != labels[:, 1])
                second = labels[chosen, 1] > labels[chosen, 0]
                places = np.full((2, len(chosen)), [[number], [group]])
                rows.append(np.stack([*places, chosen, second], axis=1))
        self._rows = np.concatenate(rows) if rows else np.zeros((0, 4), np.int64)
        if not len(self._rows):
            raise UserError(f"{field}={name!r} has no pair of which one was chosen: name others.")
        self.fingerprint = digest.hexdigest()
        self._lock = threading.Lock()
        self._group = functools.lru_cache(GROUPS_HELD)(self._read_group)

    def __len__(self) -> int:
        return 2 * len(self._rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        """Returns a picture, uint8 [height, width, 3], and its caption.

        Raises:
          UserError: the row is broken; the message names it.
        """
        number, group, row, second = self._rows[index // 2]
        with self._lock:  # Others that want the same group wait for it.
            table = self._group(int(number), int(group))
        column = PICTURES[int(second) ^ index % 2]
        place = f"{self._paths[number]}, row group {group}, row {row} (the first is 0)"
        picture, caption = (table.column(name)[int(row)].as_py() for name in (column, CAPTION))
        # Hugging Face's datasets keep a picture's file with its name.
        picture = picture.get("bytes") if isinstance(picture, dict) else picture
        if picture is None or caption is None:
            raise UserError(f"{place}: {CAPTION!r} or {column!r} is null: leave the row out.")
        try:
            pixels = read_picture(picture, *self._size)
        except ValueError as error:
            raise UserError(
                f"{place}: {column!r} is not a picture ({error}): leave the row out."
            ) from None
        return pixels, decode_text(caption, place)

    def _read_group(self, number: int, group: int) -> pa.Table:
        path = self._paths[number]
        with _parquet_errors(path), path.open("rb") as file:
            table = pq.ParquetFile(file).read_row_group(group, columns=[CAPTION, *PICTURES])
        # Texts are read as bytes, since Arrow takes parquet's word for it that they are UTF-8.
        place = table.column_names.index(CAPTION)
        return table.set_column(place, CAPTION, table.column(CAPTION).cast(pa.large_binary()))


@contextlib.contextmanager
def _parquet_errors(path: epath.Path) -> Iterator[None]:
    """Turns what Arrow raises into an error that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        message = str(error).splitlines()[0]
        raise UserError(f"{path} is not a whole parquet file ({message}): copy it anew.") from None


def _labels(path: epath.Path) -> list[np.ndarray]:
    """Returns the labels of each row group, float64 [rows, 2]; both are 0 where one is missing."""
    with _parquet_errors(path), path.open("rb") as file:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        for name in (CAPTION, *PICTURES, *LABELS):
            if name not in names:
                raise UserError(
                    f"{path} has no column {name!r}, but {names}: name pairs with the columns of "
                    f"Pick-a-Pic, {', '.join((CAPTION, *PICTURES, *LABELS))}."
                )
        found = []
        for group in range(table.num_row_groups):
            labels = table.read_row_group(group, columns=list(LABELS))
            columns = [labels.column(name).cast(pa.float64()).to_numpy() for name in LABELS]
            both = np.stack(columns, axis=1)
            found.append(np.where(np.isfinite(both).all(axis=1, keepdims=True), both, 0.0))
    return found
