"""Pictures with their texts, by random access: cropped, resized, and nothing kept in memory."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageOps

from diffusionrl_jax.data import records
from diffusionrl_jax.data.sources import decode_text, parse


def fit(image: Image.Image, height: int, width: int) -> np.ndarray:
    """The largest centred part of the right shape, resized (bicubic, antialiased).

    Args:
      image: of any size and mode; it is turned upright as its EXIF says.
      height, width: of the result.

    Returns:
      uint8 [height, width, 3].
    """
    image = ImageOps.exif_transpose(image).convert("RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


class RecordPictures(Sequence):
    """Pictures of array_record files.

    Args:
      opened: the records.
      image, text: names of features.
      height, width: of every picture.

    Attributes:
      fingerprint: tells these pictures from others.
    """

    def __init__(self, opened: records.Records, image: str, text: str, height: int, width: int):
        self._records, self._image, self._text = opened, image, text
        self._size = height, width
        self.fingerprint = f"{opened.fingerprint} {image} {text} {height}x{width}"

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        """A picture uint8 [height, width, 3] and its text.

        Raises:
          ValueError: the record is broken; the message names it.
        """
        record = self._records[index]
        place = f"{self._records.source}, record {index} (the first is 0)"
        try:
            with Image.open(io.BytesIO(record[self._image])) as image:
                picture = fit(image, *self._size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{place}: {self._image!r} is not a picture ({error}): leave the record out, or"
                " name another feature with image=."
            ) from None
        return picture, decode_text(record[self._text], place)


def open_pictures(name: str, height: int, width: int) -> RecordPictures:
    """Opens pictures with texts.

    Args:
      name: `tfds:NAME` or `array_record:FOLDER` as in `records.open_records`; `image=` and `text=`
        name the features, "image" and "caption" if they lack.
      height, width: of every picture.

    Raises:
      ValueError, FileNotFoundError: there are no such pictures.
    """
    source = parse(name, records.KINDS)
    if not source.kind:
        raise ValueError(
            f"There are no pictures {name!r}: use emoji, tfds:NAME, array_record:FOLDER, or"
            " latents:FOLDER from python -m diffusionrl_jax.cache_latents."
        )
    source.check_options(("image", "text", *records.OPTIONS[source.kind]))
    features = {
        "image": source.options.get("image", "image"),
        "text": source.options.get("text", "caption"),
    }
    return RecordPictures(
        records.open_records(source, features), features["image"], features["text"], height, width
    )


class MappedPictures(Sequence):
    """Pictures of a sequence of mappings, as tensorflow-datasets' `as_data_source` gives them.

    Args:
      items: with "image", uint8 [height, width, 3], and "prompt", UTF-8 bytes.
      fingerprint: tells these pictures from others.
    """

    def __init__(self, items: Sequence[Mapping], fingerprint: str):
        self._items, self.fingerprint = items, fingerprint

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        """A picture and its text."""
        item = self._items[index]
        return item["image"], item["prompt"].decode("utf-8")
