"""The emoji world as a tensorflow-datasets builder; TensorFlow itself is never imported."""

import errno
import hashlib
import io
import json

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from PIL import Image

from diffusionrl_jax.data.emoji import pictures
from diffusionrl_jax.data.files import clear_full_disk, partial_path

SPLITS = {"train": 8192, "test": 1024}
DIGESTS = "digests.json"
WRITING = "write() failed: "


def encode_png(image: np.ndarray) -> bytes:
    """Returns the PNG bytes of a picture, uint8 [height, width, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


class EmojiWorld(tfds.core.GeneratorBasedBuilder):
    """Pictures of the emoji world with their prompts: singles, pairs and portraits."""

    VERSION = tfds.core.Version("1.2.0")
    RELEASE_NOTES = {
        "1.0.0": "104 objects, 23 occupations in five skin tones.",
        "1.1.0": "More single objects, half of them prompted as portraits.",
        "1.2.0": "Single objects beside nothing, in the words and places of pairs.",
    }

    def _info(self) -> tfds.core.DatasetInfo:
        size = pictures.IMAGE_SIZE
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "prompt": tfds.features.Text(),
                    "kind": tfds.features.ClassLabel(names=list(pictures.KIND_FREQUENCIES)),
                }
            ),
            description=self.__doc__,
        )

    def _split_generators(self, _):
        return {
            split: self._generate_examples(seed, count)
            for seed, (split, count) in enumerate(SPLITS.items())
        }

    def _generate_examples(self, seed: int, count: int):
        for index in range(count):
            example = pictures.random_example(np.random.default_rng((seed, index)))
            yield (
                index,
                {
                    "image": encode_png(example.image),
                    "prompt": example.prompt,
                    "kind": example.kind,
                },
            )


def load(split: str, data_dir: str):
    """Opens a random-access source of a split's examples, which is built on first use.

    Args:
      split: "train" or "test".
      data_dir: the folder of the built files. What is there and is not what was written is made
        anew.

    Returns:
      A sequence of {"image": uint8 [32, 32, 3], "prompt": bytes, "kind": int}.

    Raises:
      OSError: the files can't be written.
    """
    root = epath.Path(data_dir)
    folder = root / EmojiWorld.name / str(EmojiWorld.VERSION)
    # This comes before tensorflow-datasets looks at the folder, which fails where it is damaged.
    if not _is_whole(folder):
        if folder.exists():
            logging.warning("%s is not what was written there, and is made anew.", folder)
        _build(root, folder)
    builder = EmojiWorld(data_dir=data_dir, file_format="array_record")
    return builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]


def _build(root: epath.Path, folder: epath.Path) -> None:
    """Makes the data set's folder, which is whole or not there."""
    root.mkdir(parents=True, exist_ok=True)
    partial = partial_path(root / folder.name)
    try:
        with clear_full_disk(folder):
            builder = EmojiWorld(data_dir=partial, file_format="array_record")
            try:
                builder.download_and_prepare()
            except RuntimeError as error:  # The writer of array_record files raises it.
                if WRITING not in str(error):
                    raise
                reason = str(error).partition(WRITING)[2].partition(";")[0]
                raise OSError(errno.ENOSPC, reason) from None
            made = epath.Path(builder.data_dir)
            (made / DIGESTS).write_text(json.dumps(_digests(made), indent=1))
        folder.parent.mkdir(exist_ok=True)
        if folder.exists():
            folder.rename(partial / "replaced")
        made.rename(folder)
    finally:
        partial.rmtree(missing_ok=True)


def _is_whole(folder: epath.Path) -> bool:
    """Returns whether a folder holds what was written there, and nothing else."""
    try:
        return json.loads((folder / DIGESTS).read_text()) == _digests(folder)
    except (OSError, ValueError):
        return False


def _digests(folder: epath.Path) -> dict[str, str]:
    """Returns the SHA-256 of each file but the digests' own, by its name, in hexadecimal."""
    files = [path for path in sorted(folder.iterdir()) if path.name != DIGESTS]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
