"""Tells the colours of things by the words that people have for them, without weights."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.data.object_requests import COLOURS
from diffusionrl_jax.rewards.colorimetry import lab_of_srgb

# Shades of each colour in sRGB. Grey is none of the colours that are asked for.
SHADES = {
    "red": ((220, 20, 30), (150, 10, 20)),
    "orange": ((255, 130, 10), (220, 105, 20)),
    "yellow": ((255, 235, 20), (230, 200, 60)),
    "green": ((20, 140, 40), (120, 200, 80), (50, 90, 40)),
    "blue": (
        (20, 60, 200),
        (90, 160, 230),
        (20, 40, 100),
        (10, 10, 130),
        (15, 15, 235),
        (160, 210, 235),
    ),
    "purple": ((120, 30, 150), (165, 110, 200), (60, 10, 70), (150, 10, 240)),
    "pink": ((255, 110, 180), (250, 180, 200)),
    "brown": ((105, 65, 30), (150, 100, 60)),
    "black": ((15, 15, 15),),
    "white": ((245, 245, 245),),
    "grey": ((70, 70, 70), (128, 128, 128), (185, 185, 185)),
}
NAMES = (*COLOURS, "grey")
MOST_PIXELS = 128  # Colours are told at this height and width at most.
# The ellipse of a box that counts, in shares of its sides: things are mostly in the middle.
MIDDLE = 0.7


def name_pixels(images: jax.Array) -> jax.Array:
    """Returns the number in `NAMES` of each pixel's colour: that of the nearest of the `SHADES`.

    Args:
      images: sRGB in [0, 1], float [..., 3].

    Returns:
      int32 [...]. Distances are Euclidean in CIELAB.
    """
    shades = np.array([shade for name in NAMES for shade in SHADES[name]], np.float32) / 255
    of_shade = np.array([NAMES.index(name) for name in NAMES for _ in SHADES[name]], np.int32)
    apart = lab_of_srgb(images)[..., None, :] - lab_of_srgb(jnp.asarray(shades))
    return jnp.asarray(of_shade)[jnp.argmin(jnp.sum(apart**2, -1), -1)]


def name_boxes(images: jax.Array, boxes: jax.Array) -> jax.Array:
    """Returns the number in `NAMES` of the colour that most pixels in the middle of a box have.

    Args:
      images: float [n, height, width, 3] in [0, 1].
      boxes: float [n, boxes, 4]: left, top, right, bottom, in shares of the picture.

    Returns:
      int32 [n, boxes].
    """
    count, height, width, _ = images.shape
    scale = min(1.0, MOST_PIXELS / max(height, width))
    if scale < 1:
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        images = jax.image.resize(images, (count, *size, 3), "linear", antialias=True)
    names = jax.nn.one_hot(name_pixels(images), len(NAMES))
    return jnp.argmax(jnp.einsum("nbyx,nyxc->nbc", _middles(images, boxes), names), -1)


def _middles(images: jax.Array, boxes: jax.Array) -> jax.Array:
    """Returns 1 for pixels in the middle of a box and 0 elsewhere, [n, boxes, height, width].

    The pixel that is nearest to the centre always counts, even of the smallest box.
    """
    sides = np.array(images.shape[2:0:-1])
    low, high = boxes[..., :2] * sides, boxes[..., 2:] * sides
    centre = (low + high) / 2
    half = jnp.maximum(MIDDLE * (high - low) / 2, 0.75)
    x, y = (
        ((np.arange(side) + 0.5 - centre[..., axis, None]) / half[..., axis, None]) ** 2
        for axis, side in enumerate(sides)
    )
    return (y[..., :, None] + x[..., None, :] <= 1).astype(jnp.float32)
