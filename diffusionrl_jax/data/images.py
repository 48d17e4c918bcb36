"""The pretraining pictures as latents and token ids, encoded once and then drawn by step.

The pretraining loss (Eq. 9) needs latents of the same pictures in every epoch. They are encoded in
advance; with mean and standard deviation kept instead of one sample, each step still draws anew.
"""

import functools
import hashlib
import os
import pathlib
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain.python as grain
import jax
import numpy as np

FIELDS = ("latent_mean", "latent_std", "input_ids")


class LatentDataset:
    """Latents and token ids in memory, drawn in shuffled epochs by random access.

    Args:
      latent_mean: [n, channels, height, width] float32, the VAE's scaling factor applied.
      latent_std: the same shape and scaling.
      input_ids: [n, tokens] int32.

    Raises:
      ValueError: there is no picture, or the three do not belong together.
    """

    def __init__(self, latent_mean: np.ndarray, latent_std: np.ndarray, input_ids: np.ndarray):
        if latent_mean.shape != latent_std.shape or len(latent_mean) != len(input_ids):
            raise ValueError(
                f"Latents of shapes {latent_mean.shape} and {latent_std.shape} do not belong to"
                f" token ids of shape {input_ids.shape}: give one of each per picture."
            )
        if not len(latent_mean):
            raise ValueError("There are no pretraining pictures: give at least one.")
        self.latent_mean = np.asarray(latent_mean, np.float32)
        self.latent_std = np.asarray(latent_std, np.float32)
        self.input_ids = np.asarray(input_ids, np.int32)

    def __len__(self) -> int:
        return len(self.latent_mean)

    def batch(self, step: int, batch_size: int, seed: int) -> dict[str, np.ndarray]:
        """The global batch of a step: a pure function of its arguments.

        Args:
          step: the training step, 0 or more.
          batch_size: pictures in the batch.
          seed: of the order; each epoch has another.

        Returns:
          latent_mean and latent_std [batch_size, channels, height, width] float32, and input_ids
          [batch_size, tokens] int32.
        """
        order = _order(len(self), seed)
        first = step * batch_size
        chosen = np.array([int(order[first + index]) for index in range(batch_size)])
        return {field: getattr(self, field)[chosen] for field in FIELDS}

    def save(self, path: str, fingerprint: str) -> None:
        """Writes an .npz file under what it was made from; whole or not at all."""
        target = pathlib.Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        with partial.open("wb") as file:
            arrays = {field: getattr(self, field) for field in FIELDS}
            np.savez(file, fingerprint=np.array(fingerprint), **arrays)
        os.replace(partial, target)

    @classmethod
    def load(cls, path: str, fingerprint: str) -> "LatentDataset":
        """Reads what `save` wrote; nothing is unpickled.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file is damaged, or was made from another model or other pictures.
        """
        mend = "remove it, and it is made again"
        try:
            with np.load(path, allow_pickle=False) as file:
                found = str(file["fingerprint"])
                arrays = [file[field] for field in FIELDS] if found == fingerprint else None
        except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"The cached latents {path} are damaged ({error}): {mend}.") from None
        if arrays is None:
            raise ValueError(
                f"The cached latents {path} are stale, made from another model or other pictures:"
                f" {mend}."
            )
        return cls(*arrays)


def encode_pictures(
    source: Sequence,
    encode: Callable[[np.ndarray], tuple[Any, Any]],
    tokenize: Callable[[list[str]], np.ndarray],
    batch_size: int = 64,
) -> LatentDataset:
    """Encodes all pictures and prompts of a random-access source.

    Args:
      source: has a length and items, as tensorflow-datasets' `as_data_source` gives them: a mapping
        with "image" and "prompt", or a pair of these. Images are uint8 [height, width, 3], all of
        one size; prompts are strings or UTF-8 bytes.
      encode: images float32 [batch_size, height, width, 3] in [0, 1] -> (mean, std), each
        [batch_size, channels, height, width]. It always sees full batches, so it compiles once.
      tokenize: prompts -> int32 [n, tokens].
      batch_size: pictures that are encoded at a time.

    Raises:
      ValueError: the source is empty, or an item is not such a picture.
    """
    if not len(source):
        raise ValueError("There are no pretraining pictures: the source is empty.")
    means, stds, prompts, shape = [], [], [], None
    for first in range(0, len(source), batch_size):
        images = []
        for index in range(first, min(first + batch_size, len(source))):
            image, prompt = _picture(source[index], index)
            shape = shape or image.shape
            if image.shape != shape:
                raise ValueError(
                    f"Picture {index} has shape {image.shape}, the first {shape}: resize them to"
                    " one size."
                )
            images.append(image)
            prompts.append(prompt)
        count = len(images)
        images += [images[-1]] * (batch_size - count)
        mean, std = encode(np.stack(images).astype(np.float32) / 255.0)
        means.append(np.asarray(mean, np.float32)[:count])
        stds.append(np.asarray(std, np.float32)[:count])
    return LatentDataset(np.concatenate(means), np.concatenate(stds), tokenize(prompts))


def cached_latents(
    path: str, fingerprint: str, build: Callable[[], LatentDataset]
) -> LatentDataset:
    """The latents in the file, or else made by `build` and written there.

    A stale or damaged file is not used, but replaced with a printed notice. Of several processes
    the first alone writes.
    """
    try:
        return LatentDataset.load(path, fingerprint)
    except FileNotFoundError:
        pass
    except ValueError as error:
        print(f"NOTICE: making the latents anew. {error}", file=sys.stderr, flush=True)
    dataset = build()
    if jax.process_index() == 0:
        dataset.save(path, fingerprint)
    return dataset


def fingerprint(params: Any, *names: str) -> str:
    """What latents were made from, as `cached_latents` compares it.

    Args:
      params: the VAE's parameters; paths, shapes, dtypes and values count.
      *names: what else they depend on: the pictures, their number, the tokenizer.

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
def _order(count: int, seed: int) -> grain.MapDataset:
    return grain.MapDataset.range(count).shuffle(seed=seed).repeat()


def _picture(item, index: int) -> tuple[np.ndarray, str]:
    image, prompt = (item["image"], item["prompt"]) if isinstance(item, Mapping) else item
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
            f"Picture {index} is {image.dtype} of shape {image.shape}: give uint8"
            " [height, width, 3]."
        )
    return image, prompt.decode("utf-8") if isinstance(prompt, bytes) else str(prompt)
