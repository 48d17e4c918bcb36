"""Sprites as they are cropped from a font's glyphs; of any font, since Noto's may not be here."""

import sys
import types

import numpy as np
import pytest
from PIL import ImageFont

from diffusionrl_jax.data.emoji import pictures, vocabulary

NAMES = [
    *vocabulary.OBJECTS.values(),
    *(
        f"{job}_{tone}_skin_tone"
        for job in vocabulary.OCCUPATIONS.values()
        for tone in vocabulary.TONES
    ),
]


@pytest.fixture
def render(monkeypatch):
    """The module, with a package `emoji` that knows what is drawn, each name also unqualified."""
    known = {
        chr(0x1F300 + number) + ending: {"en": f":{name}:", "status": status}
        for number, name in enumerate(NAMES)
        for status, ending in ((2, ""), (4, "?"))
    }
    package = types.SimpleNamespace(STATUS={"fully_qualified": 2}, EMOJI_DATA=known)
    monkeypatch.setitem(sys.modules, "emoji", package)
    from diffusionrl_jax.data.emoji import render

    return render


def test_every_sprite_of_the_atlas_has_its_fully_qualified_emoji(render):
    found = render.sequences()
    assert found.keys() == pictures._atlas()[1].keys()
    assert len(set(found.values())) == len(found)
    assert not any("?" in text for text in found.values())
    assert found["apple"] == chr(0x1F300 + NAMES.index("red_apple"))


@pytest.mark.parametrize("text", ["|", "_", "W", "x"])
def test_a_sprite_is_the_ink_in_the_middle_of_a_square(render, text):
    font = ImageFont.load_default(render.FONT_SIZE)
    left, top, right, bottom = font.getmask(text, "L").getbbox()
    width, height = right - left, bottom - top
    sprite = render.render(text, font)
    assert sprite.size == (pictures.SPRITE_SIZE, pictures.SPRITE_SIZE)
    opaque = np.asarray(sprite.getchannel("A")) > 127
    rows, columns = np.flatnonzero(opaque.any(1)), np.flatnonzero(opaque.any(0))
    scale = pictures.SPRITE_SIZE / max(width, height)
    for cells, length in ((rows, height), (columns, width)):
        # To a pixel: edges that are half covered, and the rounding of the margins.
        assert abs(len(cells) - scale * length) <= 2
        assert abs((cells[0] + cells[-1] + 1) / 2 - pictures.SPRITE_SIZE / 2) <= 1.5
