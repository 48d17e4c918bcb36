"""Reads pictures with their texts, by random access: cropped, resized, and none kept in memory."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from diffusionrl_jax.data import records
from diffusionrl_jax.data.sources import decode_text, parse
from diffusionrl_jax.mistakes import UserError

# Pillow's decoders of these formats read pixels and no more. It knows others that start programs
# (EPS), or that hardly anybody else has tried to break.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP")
# These are 8192 x 8192. A file of some kilobytes may say that it has more, and each pixel takes
# bytes to decode.
MOST_PIXELS = 2**26
# It lies behind transparent pixels, as behind the emoji world's. The colour that a file hides there
# may be any, and nobody has seen it.
BACKGROUND = "white"
# Modes of whole and of real numbers whose range is not known. No format above has them.
RANGELESS = ("I", "F")
# The place of the byte of a PNG file that says how many bits a channel has. It follows the
# signature, and the header's length, name, width and height.
PNG_DEPTH = 24
# EXIF's tag, and how a picture is turned upright for each value of it but upright itself.
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow refuses a PNG's texts, and its colour profile, where one is above 1 MiB. A picture takes
# more than all of them may together, which is 64 MiB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


def read_picture(file: bytes, height: int, width: int) -> np.ndarray:
    """Decodes a picture's file that nobody vouches for.

    Args:
      file: the bytes of a file of one of `FORMATS`, with `MOST_PIXELS` at most. If it has several
        frames, the first is taken.
      height, width: the size of the result; see `fit`.

    Returns:
      uint8 [height, width, 3].

    Raises:
      UserError: it is not such a file, is broken, or has more pixels, which is found before they
        are decoded; or it names a transparent colour that Pillow does not keep.
    """
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            if math.prod(image.size) <= MOST_PIXELS:
                if image.format == "PNG":
                    _scale_transparent_colour(image, file[PNG_DEPTH])
                return fit(image, height, width)
            size = "{} x {}".format(*image.size)
    except Image.UnidentifiedImageError:
        raise UserError(f"it is no file of {', '.join(FORMATS)}") from None
    # Pillow has a larger limit of its own, and each decoder has its own errors, such as AVIF's
    # RuntimeError.
    except Exception as error:
        raise UserError(str(error) or type(error).__name__) from error
    raise UserError(f"it has {size} pixels, more than {MOST_PIXELS:,}")


def fit(image: Image.Image, height: int, width: int) -> np.ndarray:
    """Cuts out the largest centred part of the right shape, and resizes it (bicubic, antialiased).

    Args:
      image: a picture of any size, and of a mode that Pillow makes RGB of. It is turned upright as
        its EXIF says, if that can be read, 16 bits are rounded to 8, and what is transparent is put
        on `BACKGROUND`.
      height, width: the size of the result.

    Returns:
      uint8 [height, width, 3].

    Raises:
      UserError: the picture's mode has no range of values.
    """
    image.load()  # EXIF may lie behind the pixels.
    turn = _turn(image)
    image = _opaque(image if turn is None else image.transpose(turn))
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Returns what turns a picture upright; None where its EXIF says nothing, or is broken.

    Pillow's `exif_transpose` also writes EXIF anew, and fails where any tag is of a wrong type.
    """
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Broken EXIF raises many kinds.
        return None


def _opaque(image: Image.Image) -> Image.Image:
    """Returns a picture as RGB, on `BACKGROUND`."""
    if image.mode in RANGELESS:
        raise UserError(f"its mode is {image.mode}, whose values have no range: save it as RGB")
    if image.mode.startswith("I;16"):
        image = _of_eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image).convert("RGB")


def _of_eight_bits(image: Image.Image) -> Image.Image:
    """Returns a grey picture of 16 bits as L or LA.

    Pillow itself would make all but the darkest pixels white.
    """
    values = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if "transparency" not in image.info:
        return grey
    alpha = Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8))
    return Image.merge("LA", [grey, alpha])


def _scale_transparent_colour(image: Image.Image, depth: int) -> None:
    """Scales the colour that a PNG calls transparent as Pillow scales the picture, to 8 bits."""
    colour = image.info.get("transparency")
    if image.mode == "L" and isinstance(colour, int):
        image.info["transparency"] = colour * 255 // (2**depth - 1)
    if image.mode == "RGB" and isinstance(colour, tuple) and depth > 8:
        raise UserError(
            "of 16 bits a channel one colour is transparent: save it with 8, or as RGBA"
        )


class RecordPictures(Sequence):
    """The pictures of array_record files.

    Args:
      opened: the records.
      image, text: the names of the features.
      height, width: the size of every picture.

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
        """Returns a picture, uint8 [height, width, 3], and its text.

        Raises:
          UserError: the record is broken; the message names it.
        """
        record = self._records[index]
        place = f"{self._records.source}, record {index} (the first is 0)"
        try:
            picture = read_picture(record[self._image], *self._size)
        except ValueError as error:
            raise UserError(
                f"{place}: {self._image!r} is not a picture ({error}): leave the record out, or"
                " name another feature with image=."
            ) from None
        return picture, decode_text(record[self._text], place)


def open_pictures(name: str, height: int, width: int) -> RecordPictures:
    """Opens pictures with texts.

    Args:
      name: `tfds:NAME` or `array_record:FOLDER`, as in `records.open_records`. `image=` and `text=`
        name the features, which are "image" and "caption" if they are left out.
      height, width: the size of every picture.

    Raises:
      UserError, FileNotFoundError: there are no such pictures.
    """
    source = parse(name, records.KINDS)
    if not source.kind:
        raise UserError(
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
    """The pictures of a sequence of mappings, as tensorflow-datasets' `as_data_source` gives them.

    Args:
      items: mappings with "image", uint8 [any height, any width, 3], and "prompt", UTF-8 bytes.
      fingerprint: tells these pictures from others.
      height, width: the size of every picture; see `fit`.
    """

    def __init__(self, items: Sequence[Mapping], fingerprint: str, height: int, width: int):
        self._items, self.fingerprint = items, fingerprint
        self._size = height, width

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        """Returns a picture, uint8 [height, width, 3], and its text."""
        item = self._items[index]
        picture = fit(Image.fromarray(item["image"]), *self._size)
        return picture, item["prompt"].decode("utf-8")
