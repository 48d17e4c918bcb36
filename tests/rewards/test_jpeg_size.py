"""The JPEG size in the graph equals the length of the file that Pillow writes: no tolerance."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusionrl_jax.rewards import jpeg_size, jpeg_tables


@jax.jit
def compiled(images, quantisation):
    return jax.vmap(jpeg_size.jpeg_bytes, (0, None))(images, quantisation)


def sizes(images, quality):
    return compiled(images, jpeg_tables.quantisation(quality))


def pillow_bytes(image: np.ndarray, quality: int) -> int:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return len(buffer.getvalue())


def natural(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A texture whose spectrum falls with the frequency as that of photographs does (1 / f).

    Colours mostly follow the brightness, and what is too bright or too dark is clipped.
    """
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))[..., None]
    amplitude = 1 / np.maximum(frequency, 1 / max(height, width))
    waves = rng.standard_normal((2, height, width // 2 + 1, 4)) * amplitude
    planes = np.fft.irfft2(waves[0] + 1j * waves[1], (height, width), axes=(0, 1))
    planes = (planes - planes.mean((0, 1))) / planes.std((0, 1))
    colours = planes[..., :1] + rng.uniform(0, 0.8) * planes[..., 1:]
    return np.clip(rng.uniform(80, 170, 3) + rng.uniform(20, 70) * colours, 0, 255).astype(np.uint8)


def pictures(rng: np.random.Generator, height: int, width: int) -> list[np.ndarray]:
    """46: flat colours, ramps, stripes, natural and smooth textures, speckles, edges and noise."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    shape = (height, width, 3)
    result = [np.full(shape, value, np.uint8) for value in (0, 255)]
    result += [np.broadcast_to(rng.integers(0, 256, 3), shape) for _ in range(6)]
    result += [natural(rng, height, width) for _ in range(24)]
    result += [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(2)]
    result += [rng.choice(np.array([0, 255], np.uint8), shape)]
    result += [np.stack([rows * 255 / height, columns * 255 / width, rows * 0], -1)]
    for _ in range(4):
        phase, scale = rng.uniform(0, 6, 3), rng.uniform(0.05, 2, 2)
        wave = np.sin((rows * scale[0] + columns * scale[1])[..., None] + phase)
        result += [127 + 127 * wave, 127 + 127 * np.sign(wave)]
    speckled = np.full(shape, 200, np.uint8)
    speckled[rng.random((height, width)) < 0.02] = rng.integers(0, 256, 3)
    half = np.zeros(shape, np.uint8)
    half[:, width // 3 :] = (250, 20, 90)
    return [np.asarray(picture).astype(np.uint8) for picture in [*result, speckled, half]]


@pytest.mark.parametrize(
    "height, width", [pytest.param(32, 32, marks=pytest.mark.slow), (33, 47), (40, 9)]
)
def test_bytes_equal_pillows(height, width):
    rng = np.random.default_rng((height, width))
    images = np.stack(pictures(rng, height, width))
    for quality in (95, 75, 30, 50):
        expected = [pillow_bytes(image, quality) for image in images]
        np.testing.assert_array_equal(sizes(images, quality), expected)


def test_extreme_qualities():
    images = np.stack(pictures(np.random.default_rng(7), 17, 64))
    for quality in (1, 100):
        expected = [pillow_bytes(image, quality) for image in images]
        np.testing.assert_array_equal(sizes(images, quality), expected)


@pytest.mark.slow
@pytest.mark.parametrize("height, width", [(512, 512), (509, 341)])
def test_large_pictures(height, width):
    rng = np.random.default_rng((height, width))
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    images = np.stack([natural(rng, height, width), natural(rng, height, width), noise])
    for quality in (95, 60):
        expected = [pillow_bytes(image, quality) for image in images]
        np.testing.assert_array_equal(sizes(images, quality), expected)


def test_reward_is_minus_kilobytes():
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    reward, params = jpeg_size.JpegSize.load()
    images = jnp.asarray(image / 255, jnp.float32)
    score = jax.jit(reward)(params, images, reward.prepare(["noise"]))
    np.testing.assert_allclose(score, [-pillow_bytes(image[0], 95) / 1000], rtol=1e-6)
