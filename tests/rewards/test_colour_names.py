"""Names of colours against the survey of xkcd and CSS, as matplotlib has them."""

import matplotlib.colors
import numpy as np
import pytest

from diffusionrl_jax.data.object_requests import COLOURS
from diffusionrl_jax.rewards.colour_names import NAMES, name_boxes, name_pixels

HOW = ("", "bright ", "deep ", "strong ", "vivid ", "true ", "pure ", "medium ", "dark ", "light ")


def named(colours):
    """What each of matplotlib's colours is called, by the names of colours."""
    known = matplotlib.colors.to_rgba_array(list(colours))[:, :3]
    return [NAMES[number] for number in np.asarray(name_pixels(known))]


def test_people_call_it_so():
    """The shades were chosen with these colours of the survey in view."""
    survey = {f"xkcd:{how}{colour}": colour for colour in COLOURS for how in HOW}
    plain = {name: c for name, c in survey.items() if name in matplotlib.colors.XKCD_COLORS}
    assert len(plain) == 53
    assert named(plain) == list(plain.values())


def test_most_of_css_is_called_so():
    """The shades were not chosen by these. "greenyellow" and "cadetblue" are no plain ones."""
    css = matplotlib.colors.CSS4_COLORS
    plain = {name: colour for name in css for colour in COLOURS if name.endswith(colour)}
    right = [a == b for a, b in zip(named(plain), plain.values(), strict=True)]
    assert len(right) == 63 and sum(right) >= 50


def test_greys_have_none_of_the_colours():
    greys = np.linspace(0.25, 0.75, 11)[:, None].repeat(3, 1)
    assert {NAMES[number] for number in np.asarray(name_pixels(greys))} == {"grey"}


@pytest.mark.parametrize("size", [(32, 48), pytest.param((300, 200), marks=pytest.mark.slow)])
def test_the_middle_of_a_box_counts(size):
    image = np.full((1, *size, 3), (0.1, 0.6, 0.2), np.float32)
    height, width = size
    # Half of the width and height are blue, in a box that is a quarter larger.
    image[:, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = (0.1, 0.3, 0.85)
    boxes = np.array([[[0.19, 0.19, 0.81, 0.81], [0, 0, 0.2, 0.2], [0.5, 0.5, 0.5, 0.5]]])
    assert [NAMES[number] for number in name_boxes(image, boxes)[0]] == ["blue", "green", "blue"]
