"""Draws grids of pictures with captions."""

import io
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffusionrl_jax.data.files import write_whole
from diffusionrl_jax.mistakes import UserError

SEPARATOR = 2
SEPARATOR_COLOUR = (208, 208, 208)
FONT_SIZE = 12
LINE_HEIGHT = 15
MAX_CAPTION_LINES = 4
ROW_CAPTION_WIDTH = 110
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Converts floats in [0, 1] to bytes, rounded to the nearest and clipped, with NaN as 0.

    Images that are uint8 already are returned as they are.

    Raises:
      UserError: the dtype is neither floating point nor uint8.
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    if images.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
        raise UserError(f"Images are {images.dtype}: give uint8, or floats in [0, 1].")
    images = np.nan_to_num(images.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    return np.round(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)


def write_png(path: str | os.PathLike, image: Image.Image) -> None:
    """Writes a picture as a PNG file. A failed write leaves no part of a file.

    Raises:
      OSError: the file cannot be written, see `files.write_whole`.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_whole(path, buffer.getvalue())


def image_grid(
    images: np.ndarray,
    columns: int,
    captions: Sequence[str] | None = None,
    row_captions: Sequence[str] | None = None,
    column_captions: Sequence[str] | None = None,
    scale: int = 1,
) -> Image.Image:
    """Draws pictures in rows, with thin separators.

    Args:
      images: [n, height, width, 3], uint8 or floats in [0, 1].
      columns: how many pictures a row has; the last row may have fewer.
      captions: a text below each picture, wrapped to its width, of four lines at most.
      row_captions: a text to the left of each row.
      column_captions: a text above each column.
      scale: each pixel becomes a square with sides of this many pixels.

    Raises:
      UserError: the images have another shape, `columns` or `scale` is below 1, or there are too
        few or too many captions.
    """
    images = to_uint8(images)
    if images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise UserError(f"Images have shape {images.shape}: give [n, height, width, 3].")
    if columns < 1 or scale < 1:
        raise UserError(f"columns={columns} and scale={scale} must be at least 1.")
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    for name, texts, expected in (
        ("captions", captions, count),
        ("row_captions", row_captions, rows),
        ("column_captions", column_captions, columns),
    ):
        if texts is not None and len(texts) != expected:
            raise UserError(f"Got {len(texts)} {name} for {expected}: give one each.")
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = height * scale, width * scale

    font = ImageFont.load_default(FONT_SIZE)
    below = [wrap(text, width, font) for text in captions or ()]
    above = [wrap(text, width, font) for text in column_captions or ()]
    below_height = max(map(len, below), default=0) * LINE_HEIGHT
    top = max(map(len, above), default=0) * LINE_HEIGHT
    left = ROW_CAPTION_WIDTH if row_captions else 0
    step_x, step_y = width + SEPARATOR, height + below_height + SEPARATOR
    grid = Image.new(
        "RGB", (left + columns * step_x - SEPARATOR, top + rows * step_y - SEPARATOR), "white"
    )
    draw = ImageDraw.Draw(grid)
    for column in range(1, columns):
        x = left + column * step_x - SEPARATOR
        draw.rectangle((x, 0, x + SEPARATOR - 1, grid.height), SEPARATOR_COLOUR)
    for row in range(1, rows):
        y = top + row * step_y - SEPARATOR
        draw.rectangle((0, y, grid.width, y + SEPARATOR - 1), SEPARATOR_COLOUR)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        x, y = left + column * step_x, top + row * step_y
        grid.paste(Image.fromarray(image), (x, y))
        if below:
            _write(draw, below[index], x, y + height, width, font)
    for column, lines in enumerate(above):
        _write(draw, lines, left + column * step_x, 0, width, font)
    for row, text in enumerate(row_captions or ()):
        lines = wrap(text, left, font)
        y = top + row * step_y + max(0, (height - len(lines) * LINE_HEIGHT) // 2)
        _write(draw, lines, 0, y, left, font)
    return grid


def before_after(
    before: np.ndarray, after: np.ndarray, prompts: Sequence[str], scale: int = 1
) -> Image.Image:
    """Draws pairs of pictures of the same prompt and seed, side by side, four prompts in a row.

    Args:
      before: pictures of the base model, [n, height, width, 3], uint8 or floats in [0, 1].
      after: the trained model's pictures, the same.
      prompts: the n prompts, which are written below.
      scale: each pixel becomes a square with sides of this many pixels.

    Raises:
      UserError: the shapes or the number of prompts differ.
    """
    before, after = to_uint8(before), to_uint8(after)
    if before.shape != after.shape:
        raise UserError(f"Before is {before.shape} and after {after.shape}: give the same.")
    line = np.broadcast_to(np.array(SEPARATOR_COLOUR, np.uint8), (*before.shape[:2], 1, 3))
    pairs = np.concatenate([before, line, after], axis=2)
    columns = min(4, len(pairs))
    return image_grid(pairs, columns, prompts, None, ["before | after"] * columns, scale)


def wrap(text: str, width: int, font: Font) -> list[str]:
    """Breaks a text into lines of at most `width` pixels, and cuts it after MAX_CAPTION_LINES."""
    lines = [""]
    for word in text.split():
        extended = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(extended) > width:
            lines.append(word)
        else:
            lines[-1] = extended
    if len(lines) > MAX_CAPTION_LINES:
        lines = lines[:MAX_CAPTION_LINES]
        lines[-1] += " ..."
    return [_cut(line, width, font) for line in lines]


def _cut(line: str, width: int, font: Font) -> str:
    """Shortens a line that is too wide at its end, and ends it with dots."""
    if font.getlength(line) <= width:
        return line
    line = line.removesuffix("...").rstrip()
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line.rstrip() + "..."


def _write(draw, lines: Sequence[str], x: int, y: int, width: int, font) -> None:
    """Writes lines of text, each centred in a width."""
    for number, line in enumerate(lines):
        indent = max(0, (width - font.getlength(line)) // 2)
        draw.text((x + indent, y + number * LINE_HEIGHT), line, fill="black", font=font)
