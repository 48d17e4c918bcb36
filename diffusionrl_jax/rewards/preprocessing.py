"""Prepares pictures for a reward model in the graph: resizes, crops or pads, and normalises."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

# OpenAI CLIP's channel statistics, which BLIP, OWL-ViT, HPS and PickScore all use.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize(images: jax.Array, height: int, width: int) -> jax.Array:
    """Resizes images bicubically with antialiasing, first along rows and then along columns.

    It does what Pillow does, except for Pillow's rounding: each pass is clipped to the range of
    8-bit pictures. Before clipping, each pass is equal to torchvision's antialiased bicubic to
    3e-6.

    Args:
      images: [n, H, W, 3] in [0, 1].
      height: the height of the result, pixels.
      width: the width of the result, pixels.

    Returns:
      [n, height, width, 3] in [0, 1]; the images themselves where they have that size.
    """
    count, rows, columns, channels = images.shape
    for shape in ((count, rows, width, channels), (count, height, width, channels)):
        if shape != images.shape:
            images = jnp.clip(jax.image.resize(images, shape, "cubic", antialias=True), 0, 1)
    return images


def centre_crop(images: jax.Array, size: int, whole: Callable = round) -> jax.Array:
    """Returns the middle of the images, [n, size, size, 3].

    Args:
      images: [n, H, W, 3], with no side below `size`.
      size: the height and width of the result, pixels.
      whole: how the first row and column are rounded where the same number of pixels cannot be cut
        off from either side: `round` as in torchvision, `math.floor` as in transformers.
    """
    top, left = (whole((side - size) / 2) for side in images.shape[1:3])
    return images[:, top : top + size, left : left + size]


def normalise(images: jax.Array, mean=CLIP_MEAN, std=CLIP_STD) -> jax.Array:
    """Subtracts the channels' mean, and divides by their standard deviation."""
    return (images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def square(images: jax.Array, size: int, whole: Callable = round) -> jax.Array:
    """Applies OpenAI CLIP's preprocessing: the short side to `size`, a centre crop, normalisation.

    Args:
      images: float [n, H, W, 3] in [0, 1].
      size: the model's input size, pixels.
      whole: as in `centre_crop`.

    Returns:
      float32 [n, size, size, 3].
    """
    height, width = images.shape[1:3]
    short = min(height, width)
    resized = resize(images, int(size * height / short), int(size * width / short))
    return normalise(centre_crop(resized, size, whole))


def square_of_transformers(images: jax.Array, size: int) -> jax.Array:
    """Applies `square` with the crop of transformers' CLIPImageProcessor, which PickScore uses."""
    return square(images, size, math.floor)


def padded(images: jax.Array, size: int) -> jax.Array:
    """Applies HPS' preprocessing: the long side to `size`, black on either side, normalisation.

    This is open_clip's ResizeMaxSize. The arguments and the result are those of `square`.
    """
    height, width = images.shape[1:3]
    scale = size / max(height, width)
    resized = resize(images, *(max(1, round(side * scale)) for side in (height, width)))
    missing = [size - side for side in resized.shape[1:3]]
    margins = [(count // 2, count - count // 2) for count in missing]
    return normalise(jnp.pad(resized, ((0, 0), *margins, (0, 0))))


def stretched(images: jax.Array, size: int) -> jax.Array:
    """Applies OWL-ViT's preprocessing: both sides to `size` whatever the aspect, normalisation."""
    return normalise(resize(images, size, size))


def _linear_resize(size: int, target: int) -> np.ndarray:
    """Returns scikit-image's antialiased linear resize of one side as a matrix [target, size].

    It is a Gaussian where the side shrinks, then linear interpolation, both with the picture
    mirrored beyond its edge. The columns are the answers to a single bright pixel.
    """
    blur = max(0.0, (size / target - 1) / 2)
    pixels = scipy.ndimage.gaussian_filter(np.eye(size), (blur, 0), mode="mirror")
    zoom = (target / size, 1)
    resized = scipy.ndimage.zoom(pixels, zoom, order=1, mode="mirror", grid_mode=True)
    return np.asarray(resized)


def padded_with_grey(images: jax.Array, size: int) -> jax.Array:
    """Applies OWLv2's preprocessing: grey below or right makes a square, which is then resized.

    The arguments and the result are those of `square`. It is equal to transformers'
    Owlv2ImageProcessor, which computes in floating point: the result keeps the range of the picture
    with its grey.
    """
    height, width = images.shape[1:3]
    side = max(height, width)
    margins = ((0, 0), (0, side - height), (0, side - width), (0, 0))
    images = jnp.pad(images, margins, constant_values=0.5)
    matrix = jnp.asarray(_linear_resize(side, size), jnp.float32)
    resized = jnp.einsum("tr,nrcx,sc->ntsx", matrix, images, matrix, precision="highest")
    low, high = (limit(images, axis=(1, 2, 3), keepdims=True) for limit in (jnp.min, jnp.max))
    return normalise(jnp.clip(resized, low, high))
