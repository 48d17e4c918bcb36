"""The preprocessing of pictures, against the libraries' own."""

import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from diffusionrl_jax.rewards import preprocessing
from tests.rewards.conftest import SIZES

NAMES = ("clip_score", "pick_score", "hps_v2", "aesthetic")


@pytest.mark.parametrize("reward", NAMES)
def test_preprocessing_is_within_pillows_rounding(reward, make_original, parity):
    original, _ = make_original(reward)
    ours = {
        "clip_score": preprocessing.square_of_transformers,
        "pick_score": preprocessing.square_of_transformers,
        "aesthetic": preprocessing.square,
        "hps_v2": preprocessing.padded,
    }[reward]
    for picture in parity.make_pictures(SIZES):
        pixels = np.asarray(ours(jnp.asarray(picture[None], jnp.float32) / 255, original.size))
        expected = original.pixels(picture).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(pixels[0], expected, atol=2e-5)
        # Half a step a pass, and the overshoot of the second pass's negative weights.
        in_8_bits = original.pixels(picture, eight_bits=True).permute(1, 2, 0).numpy()
        steps = np.abs(pixels[0] - in_8_bits) * np.array(preprocessing.CLIP_STD) * 255
        assert steps.max() < 1.25


@pytest.mark.parametrize("size", [(64, 96), (53, 40), (32, 32), (20, 17), (9, 33)])
def test_grey_padding_matches_owlv2s_processor(size, parity):
    processor = transformers.Owlv2ImageProcessor(size={"height": 32, "width": 32})
    picture = parity.make_pictures((size,))[0]
    expected = processor(picture, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
    pixels = preprocessing.padded_with_grey(picture[None].astype(np.float32) / 255, 32)[0]
    np.testing.assert_allclose(pixels, expected, atol=2e-6)
