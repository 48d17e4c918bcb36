"""Draws plots as SVG, to stand in a page: in its text's colour, whatever the background."""

import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Readable on white and on black; runs take them in turn.
COLOURS = ("#3b82f6", "#e8710a", "#0f9d6b", "#b5589e", "#9a7d0a", "#d64545")
PLAIN = "#808080"
INK = "#010203"  # What becomes the text's colour in the page.
SIZE = (4.2, 2.6)  # In inches, of 72 units of the SVG each.
MOST_POINTS = 200
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,  # A run's name may have dollars.
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": PLAIN,
    "grid.alpha": 0.25,
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line of a plot.

    Attributes:
      name: whose it is.
      x, y: its points, [n]. Those that are not finite are left out.
      low, high: the bounds of an interval around y, [n]; None without one, NaN where there is none.
      colour: an SVG colour.
      dashed: whether the line is.
      points: whether its points are marked.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    colour: str = COLOURS[0]
    dashed: bool = False
    points: bool = False


def colour(number: int) -> str:
    """Returns the colour of a run by its number."""
    return COLOURS[number % len(COLOURS)]


def thinned(curve: Curve) -> Curve:
    """Returns a curve of finite points, and of `MOST_POINTS` at most: means of neighbours."""
    keep = np.isfinite(curve.x) & np.isfinite(curve.y)
    parts = np.array_split(np.flatnonzero(keep), min(MOST_POINTS, max(1, keep.sum())))

    def take(values: np.ndarray | None) -> np.ndarray | None:
        if values is None:
            return None
        return np.array([values[part].mean() for part in parts if part.size])

    fields = {name: take(getattr(curve, name)) for name in ("x", "y", "low", "high")}
    return dataclasses.replace(curve, **fields)


def plot(title: str, curves: Sequence[Curve], x_label: str, whole: bool = False) -> str:
    """Draws curves over each other.

    Args:
      title: what is drawn, for those who do not see it.
      curves: the curves.
      x_label: what stands below the axis.
      whole: whether x is a whole number.

    Returns:
      An SVG element. The same arguments give the same text.
    """
    # matplotlib's settings are global; a page is drawn in one thread.
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(SIZE, layout="constrained")
        axes = figure.add_subplot()
        for curve in map(thinned, curves):
            _draw(axes, curve)
        axes.set_xlabel(x_label)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
        return _element(figure, title)


def _draw(axes: Axes, curve: Curve) -> None:
    alone = len(curve.x) == 1
    axes.plot(
        curve.x,
        curve.y,
        color=curve.colour,
        linewidth=1.6,
        linestyle="--" if curve.dashed else "-",
        marker="o" if curve.points or alone else "",
        markersize=3.5,
    )
    if curve.low is not None and curve.high is not None:
        there = np.isfinite(curve.low) & np.isfinite(curve.high)
        axes.fill_between(
            curve.x, curve.low, curve.high, where=there, color=curve.colour, alpha=0.18, linewidth=0
        )


def bars(title: str, shares: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """Draws one stacked bar a run.

    Args:
      title: what is drawn.
      shares: for each run, its name, and names with numbers, which are stacked.

    Returns:
      An SVG element.
    """
    names = list(dict.fromkeys(name for _, parts in shares for name, _ in parts))
    with matplotlib.rc_context(SETTINGS):
        figure = Figure((SIZE[0], 0.9 + 0.35 * len(shares)), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="y", visible=False)
        left = np.zeros(len(shares))
        for number, name in enumerate(names):
            widths = np.array([dict(parts).get(name, 0.0) for _, parts in shares])
            rows = range(len(shares))
            axes.barh(rows, widths, left=left, color=colour(number), label=name, height=0.6)
            left += widths
        axes.set_yticks(range(len(shares)), [run for run, _ in shares])
        axes.invert_yaxis()
        axes.set_xlabel("seconds")
        if names:
            figure.legend(loc="outside upper center", ncols=4, frameon=False)
        return _element(figure, title)


def _element(figure: Figure, title: str) -> str:
    """Returns a figure as an SVG element that fills its place."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, count=1, flags=re.DOTALL)
    # Several plots stand in one page; groups' names, such as axes_1, would be there twice.
    text = re.sub(r' id="(?:figure|axes|patch|line2d|matplotlib|xtick|ytick|text)[^"]*"', "", text)
    width, height = (72 * length for length in figure.get_size_inches())
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    shape = f'role="img" aria-label="{label}" style="aspect-ratio: {width:g}/{height:g}"'
    return text.replace("<svg", f"<svg {shape}", 1).replace(INK, "currentColor")
