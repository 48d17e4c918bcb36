"""The emoji world as a tensorflow-datasets builder; TensorFlow itself is never imported."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from diffusionrl_jax.data.emoji import pictures

SPLITS = {"train": 8192, "test": 1024}


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of a uint8 [height, width, 3] picture."""
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


def load(split: str, data_dir: str | None = None):
    """A random-access source of the split's examples, built on first use.

    Args:
      split: "train" or "test".
      data_dir: where the built files live; tensorflow-datasets' own folder if None.

    Returns:
      A sequence of {"image": uint8 [32, 32, 3], "prompt": bytes, "kind": int}.
    """
    builder = EmojiWorld(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return builder.as_data_source(split=split)
