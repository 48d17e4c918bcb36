"""The pretraining pictures as latents and texts, encoded once and then drawn by step.

The pretraining loss (Eq. 9) needs latents of the same pictures in every epoch. They are encoded in
advance. Since mean and standard deviation are kept instead of one sample, each step still draws
anew. Of the text usually the token ids alone are kept: they are a thousandth of the text encoder's
states, which the step computes from them.

On disk they are a folder of safetensors files of equally many pictures each, which `index.json`
completes. A file is whole or not there, so that an interrupted encoding goes on where it was. What
is read is what was written: each file holds a digest of every picture's fields, which is checked
whenever the picture is read, and the index has a digest of each file's header, and of itself.
"""

import concurrent.futures
import functools
import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import grain.python as grain
import jax
import numpy as np
import safetensors.numpy
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from diffusionrl_jax.data import latent_files
from diffusionrl_jax.data.files import matching, remove_partials, write_whole
from diffusionrl_jax.mistakes import UserError

PICTURES_PER_FILE = 1024


class LatentDataset:
    """The latents and texts of a folder, drawn in shuffled epochs by random access.

    Args:
      folder: the folder that `write_latents` wrote, local or `gs://`.
      mend: what mends the folder, for messages; None means the command that writes it.

    Attributes:
      model: the `fingerprint` of what encoded the pictures.
      text_model: the fingerprint of what embedded the texts, or None where only their token ids are
        kept.

    Raises:
      FileNotFoundError: there is no such folder, or its encoding was not completed.
      UserError: a file is missing, cut short, not the one that was written, or of an earlier
        version. What is read later raises it where a picture is not what was written.
    """

    def __init__(self, folder: str | epath.Path, mend: str | None = None):
        self._folder = epath.Path(folder)
        command = f"{latent_files.COMMAND} --output={shlex.quote(str(folder))}"
        self._mend = mend or f"run {command} again, which makes it anew"
        if not (self._folder / latent_files.INDEX).exists():
            raise FileNotFoundError(f"{folder} holds no complete latents: (re)start {command}.")
        index = latent_files.read_index(self._folder / latent_files.INDEX)
        self.model, self.text_model = index["model"], index["text_model"]
        self._count = index["pictures"]
        self._per_file, self._sizes = index["pictures_per_file"], index["sizes"]
        self._header_digests = index["headers"]
        self._readers = concurrent.futures.ThreadPoolExecutor(latent_files.READERS)
        paths = latent_files.file_paths(self._folder, len(self._sizes))
        found_sizes = self._readers.map(latent_files.size, paths)
        for path, size, found in zip(paths, self._sizes, found_sizes, strict=True):
            if found != size:
                problem = "is missing" if found is None else f"has {found} bytes, not {size}"
                raise self._damaged(path, f"the file {problem}")
        self._headers: dict[int, latent_files.Header] = {}

    def __len__(self) -> int:
        return self._count

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each field of one picture; the fields are those of `batch`."""
        return {field: tensor.shape[1:] for field, tensor in self._header(0).fields.items()}

    def batch(
        self, step: int, batch_size: int, seed: int, rows: slice = slice(None), together: int = 1
    ) -> dict[str, np.ndarray]:
        """Returns the global batch of a step, or some rows of it. It is a pure function.

        Args:
          step: the training step, 0 or more.
          batch_size: how many pictures the batch has.
          seed: the seed of the order, which is another in each epoch.
          rows: the rows of the batch to read; a host reads its own alone.
          together: how many neighbours in the source's order stay neighbours: pairs for 2. It
            divides the number of pictures, and batch_size.

        Returns:
          latent_mean and latent_std, float32 [rows, ...], with the VAE's scaling factor applied;
          input_ids, int32 [rows, tokens]; and what else `encode` made of the texts, if anything.

        Raises:
          UserError: as `read`.
        """
        order = _order(len(self) // together, seed)
        places = range(step * batch_size, (step + 1) * batch_size)[rows]
        return self.read(
            [int(order[place // together]) * together + place % together for place in places]
        )

    def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Returns the pictures of these indices.

        Args:
          indices: the pictures' places in the source's order, from 0.

        Returns:
          The fields, as `batch` returns them.

        Raises:
          UserError: a file is not what was written.
        """
        numbers, rows = np.divmod(np.asarray(indices, np.int64), self._per_file)
        result = {
            field: np.empty((len(numbers), *shape), self._header(0).fields[field].dtype)
            for field, shape in self.shapes().items()
        }
        reads = [
            self._readers.submit(
                self._read, number, rows, np.flatnonzero(numbers == number), result
            )
            for number in np.unique(numbers).tolist()
        ]
        for read in reads:
            read.result()
        return result

    def _header(self, number: int) -> latent_files.Header:
        """Returns the header of a file, which is read and checked once."""
        if number not in self._headers:
            path = self._folder / latent_files.file_name(number, len(self._sizes))
            try:
                header = latent_files.open_header(path)
            except ValueError:
                raise self._damaged(path, "its header is not whole") from None
            if header.digest != self._header_digests[number]:
                raise self._damaged(path, "its header is not what was written")
            self._headers[number] = header
        return self._headers[number]

    def _read(self, number: int, rows: np.ndarray, places: np.ndarray, result: dict) -> None:
        """Reads pictures of one file into the places of the result, and checks their digests."""
        header = self._header(number)
        path = self._folder / latent_files.file_name(number, len(self._sizes))
        first = number * self._per_file
        digests = {place: header.begin_digest(first + int(rows[place])) for place in places}
        with path.open("rb") as file:
            for field, values in sorted(result.items()):
                for place, digest in digests.items():
                    data = latent_files.read_row(file, header.fields[field], int(rows[place]))
                    if len(data) != values[place].nbytes:
                        raise self._damaged(path, "the file was cut short meanwhile")
                    values[place] = np.frombuffer(data, values.dtype).reshape(values.shape[1:])
                    digest.update(data)
        for place, digest in digests.items():
            if not header.fits(int(rows[place]), digest):
                picture = first + int(rows[place])
                raise self._damaged(path, f"picture {picture} is not what was written")

    def _damaged(self, path: epath.Path, problem: str) -> UserError:
        return UserError(f"The cached latents {path}: {problem}: {self._mend}.")


class Pictures(Protocol):
    """Pictures with texts, in an order.

    Attributes:
      fingerprint: tells these pictures from others.
    """

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, str]: ...


def write_latents(
    source: Pictures,
    encode: Callable[[np.ndarray, np.ndarray], Mapping[str, Any]],
    tokenize: Callable[[list[str]], np.ndarray],
    folder: str | epath.Path,
    model: str,
    batch_size: int = 64,
    pictures_per_file: int = PICTURES_PER_FILE,
    progress: Callable[[int], None] = lambda done: None,
    text_model: str | None = None,
    rows: Sequence[int] | None = None,
) -> None:
    """Encodes all pictures and texts of a random-access source into a folder.

    What an earlier, interrupted call left there is kept, if it still is what was written. Files of
    an earlier version are made anew. If there are several processes, all must call it, with the
    same folder, and the first alone writes.

    Args:
      source: a source with a length and a `fingerprint`, whose items are pairs of a picture, uint8
        [height, width, 3], and a text. All pictures are of one size.
      encode: takes images, float32 [batch_size, height, width, 3] in [0, 1], and their texts' token
        ids, int32 [batch_size, tokens]. It returns arrays by name that are whole on every process:
        latent_mean and latent_std, [batch_size, ...] each, input_ids, which are the token ids
        again, and what else is to be kept of the texts. It always sees full batches, so that it
        compiles once. For rows that this process does not read, and for those that fill the last
        batch, it sees zeros.
      tokenize: takes texts and returns int32 [n, tokens].
      folder: a folder, local or `gs://`.
      model: the `fingerprint` of what encodes.
      batch_size: how many pictures are encoded at a time.
      pictures_per_file: how many pictures a file has; so many are held in memory.
      progress: is told how many pictures are done.
      text_model: the `fingerprint` of what else `encode` makes of the texts, if anything.
      rows: the rows of a batch that this process reads, so that together the processes read all;
        None means every row.

    Raises:
      UserError: the source is empty, an item is not such a picture, a latent is not finite, or the
        folder holds latents of another model or of other pictures.
      OSError: the folder can't be written; what is there stays.
    """
    if not len(source):
        raise UserError("There are no pretraining pictures: the source is empty.")
    write_files(
        lambda pictures: _encode(source, pictures, encode, tokenize, batch_size, rows),
        len(source),
        source.fingerprint,
        folder,
        model,
        pictures_per_file,
        progress,
        text_model,
    )


def write_files(
    compute: Callable[[range], dict[str, np.ndarray]],
    count: int,
    made_by: str,
    folder: str | epath.Path,
    model: str,
    pictures_per_file: int = PICTURES_PER_FILE,
    progress: Callable[[int], None] = lambda done: None,
    text_model: str | None = None,
) -> None:
    """Computes the latents of pictures into a folder, file by file.

    What an earlier, interrupted call left there is kept. If there are several processes, all must
    call it, with the same folder, and the first alone writes.

    Args:
      compute: takes the numbers of a file's pictures and returns arrays [pictures, ...] by name, as
        `LatentDataset.batch` does, that are whole on every process. All processes call it for the
        same files.
      count: the number of pictures, at least 1.
      made_by: the fingerprint of the pictures.
      folder, model, pictures_per_file, progress, text_model: as in `write_latents`.

    Raises:
      UserError: a number is not finite, or the folder holds latents of another model or of other
        pictures.
    """
    folder = epath.Path(folder)
    parts = [model, made_by, count, pictures_per_file]
    parts += [text_model] if text_model else []
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    # One entry alone: safetensors writes several in any order.
    about = {"made_from": f"{latent_files.VERSION} {digest}"}
    paths = latent_files.file_paths(folder, -(-count // pictures_per_file))
    there = {path.name: path for path in matching(folder, "latents-*.safetensors")}
    if other := there.keys() - {path.name for path in paths}:
        raise latent_files.other_latents(there[min(other)])
    # All processes decide this alike, and before they encode together.
    found = [path if path.name in there else None for path in paths]
    are_whole = latent_files.are_whole(found, about, pictures_per_file)
    missing = [number for number, is_whole in enumerate(are_whole) if not is_whole]
    if damaged := [paths[number].name for number in missing if paths[number].name in there]:
        logging.warning(
            "%d files in %s, such as %s, are damaged, or of an earlier version, and made anew.",
            *(len(damaged), folder, damaged[0]),
        )
    is_writer = jax.process_index() == 0
    if is_writer:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partials(folder)
    done = count - sum(len(_pictures(n, count, pictures_per_file)) for n in missing)
    for number in missing:
        chosen = _pictures(number, count, pictures_per_file)
        arrays = compute(chosen)
        for name, values in arrays.items():
            if not np.isfinite(values).all():
                raise UserError(
                    f"The {name} of pictures {chosen[0]} to {chosen[-1]} is not finite."
                )
        if is_writer:
            arrays[latent_files.DIGESTS] = latent_files.digests(arrays, about, chosen[0])
            write_whole(paths[number], safetensors.numpy.save(arrays, metadata=about))
        done += len(chosen)
        progress(done)
    if is_writer:
        with concurrent.futures.ThreadPoolExecutor(latent_files.READERS) as readers:
            sizes = list(readers.map(latent_files.size, paths))
            headers = [header.digest for header in readers.map(latent_files.open_header, paths)]
        index = {
            "version": latent_files.VERSION,
            "model": model,
            "text_model": text_model,
            "pictures": count,
            "pictures_per_file": pictures_per_file,
            "sizes": sizes,
            "headers": headers,
        }
        index["digest"] = latent_files.index_digest(index)
        write_whole(folder / latent_files.INDEX, json.dumps(index, indent=1).encode())
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("latents are written")


def fingerprint(params: Any, *names: str) -> str:
    """Returns a digest of what latents are made from, to compare them by.

    Args:
      params: the VAE's parameters, whole on every process. Their paths, shapes, dtypes and values
        count.
      *names: what else the latents depend on, such as the tokenizer.

    Returns:
      A SHA-256 in hexadecimal.
    """
    digest = hashlib.sha256(repr(names).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(jax.device_get(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=8)
def _order(count: int, seed: int) -> Sequence[int]:
    """Returns the endless, shuffled order of pictures."""
    # grain's annotation admits None, which only a filtered data set holds.
    return cast(Sequence[int], grain.MapDataset.range(count).shuffle(seed=seed).repeat())


def _pictures(number: int, count: int, pictures_per_file: int) -> range:
    """Returns the numbers of the pictures of a file."""
    first = number * pictures_per_file
    return range(first, min(first + pictures_per_file, count))


def _encode(source, pictures: range, encode, tokenize, batch_size: int, rows) -> dict:
    """Encodes a file's pictures batch by batch, and returns arrays [pictures, ...] by name."""
    rows = range(batch_size) if rows is None else rows
    # A process that has no row of a batch learns the sizes here.
    image, text = source[0]
    shape, tokens = image.shape, np.shape(tokenize([text]))[1]
    parts = []
    with concurrent.futures.ThreadPoolExecutor() as readers:
        for first in range(0, len(pictures), batch_size):
            chosen = pictures[first : first + batch_size]
            own = [row for row in rows if row < len(chosen)]
            images = np.zeros((batch_size, *shape), np.float32)
            ids = np.zeros((batch_size, tokens), np.int32)
            texts = []
            items = readers.map(source.__getitem__, [chosen[row] for row in own])
            for row, (image, text) in zip(own, items, strict=True):
                if image.dtype != np.uint8 or image.shape != shape or shape[2:] != (3,):
                    raise UserError(
                        f"Picture {chosen[row]} is {image.dtype} of shape {image.shape}: all must"
                        " be uint8 [height, width, 3] and of one size."
                    )
                images[row] = image.astype(np.float32) / 255.0
                texts.append(text)
            if own:
                ids[own] = tokenize(texts)
            arrays = encode(images, ids)
            parts.append({name: np.asarray(part)[: len(chosen)] for name, part in arrays.items()})
    # safetensors writes memory as it lies, whatever the strides.
    join = lambda name: np.ascontiguousarray(np.concatenate([part[name] for part in parts]))
    return {name: join(name) for name in parts[0]}
