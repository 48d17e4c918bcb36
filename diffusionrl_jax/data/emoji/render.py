"""Renders the emoji of the vocabulary into the sprite atlas that the package ships.

    python -m diffusionrl_jax.data.emoji.render --font=NotoColorEmoji.ttf

needs the extra `emoji` and Noto Color Emoji (Debian: fonts-noto-color-emoji; images Apache-2.0).
"""

import json

import emoji
import PIL.features
from absl import app, flags
from PIL import Image, ImageDraw, ImageFont

from diffusionrl_jax import assets
from diffusionrl_jax.data.emoji import pictures, vocabulary

FONT = flags.DEFINE_string(
    "font", "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf", "Noto Color Emoji, a CBDT font."
)
FONT_SIZE = 109  # The font's bitmaps have only this size, in pixels.
COLUMNS = 16


def sequences() -> dict[str, str]:
    """Returns the emoji of each sprite's name: objects by noun, people as `judge/dark`."""
    # Where the package emoji is not installed, a type checker takes this folder for it.
    qualified = emoji.STATUS["fully_qualified"]  # pyright: ignore[reportAttributeAccessIssue]
    by_name = {
        entry["en"].strip(":"): sequence
        for sequence, entry in emoji.EMOJI_DATA.items()  # pyright: ignore[reportAttributeAccessIssue]
        if entry["status"] == qualified
    }
    result = {noun: by_name[name] for noun, name in vocabulary.OBJECTS.items()}
    for noun, name in vocabulary.OCCUPATIONS.items():
        for tone in vocabulary.TONES:
            result[f"{noun}/{tone}"] = by_name[f"{name}_{tone}_skin_tone"]
    return result


def render(sequence: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draws one emoji, cropped to its ink and centred on a transparent square of sprite size."""
    canvas = Image.new("RGBA", (2 * FONT_SIZE, 2 * FONT_SIZE))
    ImageDraw.Draw(canvas).text((20, 20), sequence, font=font, embedded_color=True)
    ink = canvas.crop(canvas.getbbox())
    side, size = max(ink.size), pictures.SPRITE_SIZE
    square = Image.new("RGBA", (side, side))
    square.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    return square.resize((size, size), Image.Resampling.LANCZOS)


def main(_):
    if not PIL.features.check("raqm"):
        raise RuntimeError("Pillow lacks RAQM, needed for joined emoji: install Pillow's wheel.")
    font = ImageFont.truetype(FONT.value, FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)
    sprites = {name: render(sequence, font) for name, sequence in sequences().items()}
    size = pictures.SPRITE_SIZE
    atlas = Image.new("RGBA", (COLUMNS * size, -(-len(sprites) // COLUMNS) * size))
    corners = {}
    for index, (name, sprite) in enumerate(sprites.items()):
        corners[name] = [index % COLUMNS * size, index // COLUMNS * size]
        atlas.paste(sprite, tuple(corners[name]))
    folder = assets.resolve("asset:emoji")
    atlas.save(folder / "sprites.png", optimize=True)
    (folder / "sprites.json").write_text(json.dumps(corners, indent=0))


if __name__ == "__main__":
    app.run(main)
