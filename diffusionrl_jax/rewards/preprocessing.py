"""The pictures' way into a reward model, in the graph: resize, crop or pad, normalise."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

# OpenAI CLIP's channel statistics, which BLIP, OWL-ViT, HPS and PickScore all share.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize(images: jax.Array, height: int, width: int) -> jax.Array:
    """Antialiased bicubic resize, a pass along the rows and then one along the columns.

    What Pillow does, which clips to the range of 8-bit pictures after each pass, but for its
    rounding. Each pass is equal to torchvision's antialiased bicubic to 3e-6 before the clipping.

    Args:
      images: [n, H, W, 3] in [0, 1].
      height: of the result, pixels.
      width: of the result, pixels.

    Returns:
      [n, height, width, 3] in [0, 1]; the images themselves where they have that size.
    """
    count, rows, columns, channels = images.shape
    for shape in ((count, rows, width, channels), (count, height, width, channels)):
        if shape != images.shape:
            images = jnp.clip(jax.image.resize(images, shape, "cubic", antialias=True), 0, 1)
    return images


def centre_crop(images: jax.Array, size: int, whole: Callable = round) -> jax.Array:
    """The middle [n, size, size, 3] of the images.

    Args:
      images: [n, H, W, 3], no side below `size`.
      size: of the result, pixels.
      whole: how the first row and column are rounded, where as many pixels can't be cut off from
        either side: `round` as in torchvision, `math.floor` as in transformers.
    """
    top, left = (whole((side - size) / 2) for side in images.shape[1:3])
    return images[:, top : top + size, left : left + size]


def normalise(images: jax.Array, mean=CLIP_MEAN, std=CLIP_STD) -> jax.Array:
    """Subtracts the channels' mean and divides by their standard deviation."""
    return (images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def square(images: jax.Array, size: int, whole: Callable = round) -> jax.Array:
    """OpenAI CLIP's preprocessing: the short side to `size`, the centre cut out, normalised.

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
    """`square` as transformers' CLIPImageProcessor cuts it, which PickScore uses."""
    return square(images, size, math.floor)


def padded(images: jax.Array, size: int) -> jax.Array:
    """HPS's preprocessing: the long side to `size`, the rest black on either side, normalised.

    open_clip's ResizeMaxSize. Arguments and result are those of `square`.
    """
    height, width = images.shape[1:3]
    scale = size / max(height, width)
    resized = resize(images, *(max(1, round(side * scale)) for side in (height, width)))
    missing = [size - side for side in resized.shape[1:3]]
    margins = [(count // 2, count - count // 2) for count in missing]
    return normalise(jnp.pad(resized, ((0, 0), *margins, (0, 0))))


def stretched(images: jax.Array, size: int) -> jax.Array:
    """OWL-ViT's preprocessing: both sides to `size` whatever the aspect, normalised."""
    return normalise(resize(images, size, size))


def _linear_resize(size: int, target: int) -> np.ndarray:
    """What scikit-image's linear resize with antialiasing does to one side: [target, size].

    A Gaussian where the side shrinks, then linear interpolation, both with the mirror's image
    beyond the edge. The columns are its answers to a single bright pixel.
    """
    blur = max(0.0, (size / target - 1) / 2)
    pixels = scipy.ndimage.gaussian_filter(np.eye(size), (blur, 0), mode="mirror")
    zoom = (target / size, 1)
    resized = scipy.ndimage.zoom(pixels, zoom, order=1, mode="mirror", grid_mode=True)
    return np.asarray(resized)


def padded_with_grey(images: jax.Array, size: int) -> jax.Array:
    """OWLv2's preprocessing: grey below or right of the picture makes it a square, then resized.

    Arguments and result are those of `square`. Equal to transformers' Owlv2ImageProcessor, which
    computes in floating point: the result keeps the range of the picture with its grey.
    """
    height, width = images.shape[1:3]
    side = max(height, width)
    margins = ((0, 0), (0, side - height), (0, side - width), (0, 0))
    images = jnp.pad(images, margins, constant_values=0.5)
    matrix = jnp.asarray(_linear_resize(side, size), jnp.float32)
    resized = jnp.einsum("tr,nrcx,sc->ntsx", matrix, images, matrix, precision="highest")
    low, high = (limit(images, axis=(1, 2, 3), keepdims=True) for limit in (jnp.min, jnp.max))
    return normalise(jnp.clip(resized, low, high))
