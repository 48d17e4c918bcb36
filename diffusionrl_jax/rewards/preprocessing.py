"""The pictures' way into a reward model, in the graph: resize, crop, normalise."""

import jax
import jax.numpy as jnp

# OpenAI CLIP's channel statistics, which BLIP, OWL-ViT, HPS and PickScore all share.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize(images: jax.Array, height: int, width: int) -> jax.Array:
    """Antialiased bicubic resize, clipped as 8-bit pictures are.

    Equal to torchvision's antialiased bicubic to 3e-6 before the clipping.

    Args:
      images: [n, H, W, 3] in [0, 1].
      height: of the result, pixels.
      width: of the result, pixels.

    Returns:
      [n, height, width, 3] in [0, 1]; the images themselves where they have that size.
    """
    if images.shape[1:3] == (height, width):
        return images
    shape = (images.shape[0], height, width, images.shape[3])
    return jnp.clip(jax.image.resize(images, shape, "cubic", antialias=True), 0, 1)


def centre_crop(images: jax.Array, size: int) -> jax.Array:
    """The middle [n, size, size, 3] of the images, rounded as torchvision's CenterCrop does."""
    top = round((images.shape[1] - size) / 2)
    left = round((images.shape[2] - size) / 2)
    return images[:, top : top + size, left : left + size]


def normalise(images: jax.Array, mean=CLIP_MEAN, std=CLIP_STD) -> jax.Array:
    """Subtracts the channels' mean and divides by their standard deviation."""
    return (images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def square(images: jax.Array, size: int) -> jax.Array:
    """CLIP's preprocessing: the short side to `size`, the centre cut out, normalised.

    Args:
      images: float [n, H, W, 3] in [0, 1].
      size: the model's input size, pixels.

    Returns:
      float32 [n, size, size, 3].
    """
    height, width = images.shape[1:3]
    short = min(height, width)
    resized = resize(images, int(size * height / short), int(size * width / short))
    return normalise(centre_crop(resized, size))


def stretched(images: jax.Array, size: int) -> jax.Array:
    """OWL-ViT's preprocessing: both sides to `size` whatever the aspect, normalised."""
    return normalise(resize(images, size, size))
