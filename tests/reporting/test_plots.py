"""A plot's SVG, read back as XML."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from diffusionrl_jax.reporting import plots


def test_a_plot_shows_the_numbers():
    x, y = np.array([0.0, 1.0, 4.0]), np.array([2.0, np.nan, 8.0])
    low, high = y - 1, y + 1
    text = plots.plot("a <b>", [plots.Curve("c", x, y, low, high, colour="#123456")], "iteration")
    tree = ElementTree.fromstring(text)
    assert tree.attrib["aria-label"] == "a <b>"
    assert "currentColor" in text and plots.INK not in text
    name = "{http://www.w3.org/2000/svg}path"
    (line,) = (
        path
        for path in tree.iter(name)
        if "stroke: #123456" in path.get("style", "") and "fill: none" in path.get("style", "")
    )
    points = np.array(re.findall(r"[-\d.]+", line.get("d")), float).reshape(-1, 2)
    assert len(points) == 2, "the point that is not finite is left out"
    (left, bottom), (right, top) = points
    assert right > left and top < bottom


def test_long_curves_are_thinned():
    x = np.arange(10_000.0)
    thin = plots.thinned(plots.Curve("", x, 2 * x))
    assert len(thin.x) == plots.MOST_POINTS
    np.testing.assert_allclose(thin.y, 2 * thin.x)
    assert thin.x[0] == pytest.approx(24.5), "the mean of the first fifty"
