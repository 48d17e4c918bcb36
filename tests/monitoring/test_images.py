import ml_dtypes
import numpy as np
import pytest
from PIL import ImageFont

from diffusionrl_jax.monitoring import images


def pictures(count, height=20, width=24):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_to_uint8_rounds_and_clips():
    values = np.array([0.0, 0.5, 1.0, -3.0, 7.0, np.nan, np.inf, 0.00196, 0.00197])
    expected = [0, 128, 255, 0, 255, 0, 255, 0, 1]
    np.testing.assert_array_equal(images.to_uint8(values), expected)
    back = images.to_uint8(pictures(2) / 255.0)
    np.testing.assert_array_equal(back, pictures(2))
    assert images.to_uint8(np.ones(2, ml_dtypes.bfloat16)).tolist() == [255, 255]
    with pytest.raises(ValueError, match="Images are int32"):
        images.to_uint8(np.zeros(3, np.int32))


def test_grid_places_every_picture():
    given = pictures(5)
    grid = np.asarray(images.image_grid(given, columns=3, scale=2))
    assert grid.shape == (2 * 40 + 2, 3 * 48 + 4, 3)
    for index, picture in enumerate(given):
        row, column = divmod(index, 3)
        cell = grid[row * 42 : row * 42 + 40, column * 50 : column * 50 + 48]
        np.testing.assert_array_equal(cell[::2, ::2], picture)
        np.testing.assert_array_equal(cell[1::2, 1::2], picture)
    assert (grid[40:42] == images.SEPARATOR_COLOUR).all()
    assert (grid[42:, 100:] == 255).all(), "the place of the missing picture is white"


def test_captions_are_written_outside_the_pictures():
    given = np.zeros((4, 64, 64, 3), np.uint8)
    plain = images.image_grid(given, 2)
    grid = images.image_grid(
        given, 2, ["an apple next to a cake"] * 4, ["before", "after"], ["left", "right"]
    )
    assert grid.width == plain.width + images.ROW_CAPTION_WIDTH
    pixels = np.asarray(grid)
    assert (pixels[:15, images.ROW_CAPTION_WIDTH :] < 128).any(), "column captions"
    assert (pixels[15:79, : images.ROW_CAPTION_WIDTH] < 128).any(), "row captions"
    assert (pixels[79:94, images.ROW_CAPTION_WIDTH :] < 128).any(), "captions"
    assert (pixels[15:79, images.ROW_CAPTION_WIDTH : images.ROW_CAPTION_WIDTH + 64] == 0).all()


def test_long_captions_are_wrapped_and_cut():
    font = ImageFont.load_default(images.FONT_SIZE)
    lines = images.wrap("word " * 50 + "x" * 200, 80, font)
    assert len(lines) == images.MAX_CAPTION_LINES
    assert lines[-1].endswith("...")
    for line in lines + images.wrap("y" * 200, 80, font):
        assert font.getlength(line) <= 80
    assert images.wrap("", 80, font) == [""]


def test_before_after_pairs_the_same_prompt():
    before, after = pictures(6, 32, 32), pictures(6, 32, 32)[::-1]
    grid = np.asarray(images.before_after(before / 255.0, after, ["a cat"] * 6))
    top = next(y for y in range(40) if (grid[y : y + 32, :32] == before[0]).all())
    np.testing.assert_array_equal(grid[top : top + 32, 33:65], after[0])
    np.testing.assert_array_equal(grid[top : top + 32, 67:99], before[1])
    with pytest.raises(ValueError, match="give the same"):
        images.before_after(before, after[:3], ["a cat"] * 6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"images": np.zeros((2, 3, 3)), "columns": 1}, "shape"),
        ({"images": np.zeros((2, 3, 3, 3)), "columns": 0}, "columns=0"),
        ({"images": np.zeros((2, 3, 3, 3)), "columns": 1, "captions": ["x"]}, "1 captions for 2"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        images.image_grid(**arguments)
