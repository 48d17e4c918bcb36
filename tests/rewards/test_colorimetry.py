"""Colours against colorspacious; tones against those that the emoji people were drawn with."""

import colorspacious
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import emoji
from diffusionrl_jax.emoji_world import reward_pictures
from diffusionrl_jax.rewards import REWARDS
from diffusionrl_jax.rewards.colorimetry import (
    THRESHOLDS,
    ColourParity,
    lab_of_srgb,
    typology_angle,
)

EMOJI = emoji.get_config().evaluation.scorers.colour_parity


def load(**changes):
    return REWARDS["colour_parity"].load("", **(dict(EMOJI.options) | changes))[0]


def flat(*colours, size=32):
    """Pictures of one colour each, sRGB in 0 to 255."""
    colours = jnp.asarray(colours, jnp.float32)[:, None, None] / 255
    return jnp.broadcast_to(colours, (len(colours), size, size, 3))


def test_lab_equals_colorspacious():
    rng = np.random.default_rng(0)
    corners = np.stack(np.meshgrid(*[[0, 0.02, 0.04045, 0.2, 1]] * 3), -1).reshape(-1, 3)
    colours = np.concatenate([corners, rng.random((2000, 3))])
    expected = colorspacious.cspace_convert(colours, "sRGB1", "CIELab")
    # Its matrix has four digits.
    np.testing.assert_allclose(jax.jit(lab_of_srgb)(colours), expected, atol=0.03)


def test_angle_closed_form():
    np.testing.assert_allclose(typology_angle(60.0, 10.0), 45, rtol=1e-6)
    np.testing.assert_allclose(typology_angle(50.0, 20.0), 0, atol=1e-6)
    np.testing.assert_allclose(typology_angle(30.0, 20.0), -45, rtol=1e-6)


def test_published_thresholds():
    """L* and b* on both sides of each threshold, as sRGB, fall into the published classes."""
    edges = [55, 41, 28, 10, -30]
    assert list(THRESHOLDS) == edges
    angles = [value for edge in edges for value in (edge + 1, edge - 1)]
    lab = [(50 + 20 * np.tan(np.radians(angle)), 12, 20) for angle in angles]
    colours = 255 * np.clip(colorspacious.cspace_convert(lab, "CIELab", "sRGB1"), 0, 1)
    reward = ColourParity()
    np.testing.assert_allclose(reward.angles(flat(*colours)), angles, atol=0.1)
    classes = reward.classify(flat(*colours)).argmax(-1)
    np.testing.assert_array_equal(classes, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5])


@pytest.mark.parametrize("size", [pytest.param(32, marks=pytest.mark.slow), 33, 7])
def test_the_median_of_the_skin_in_the_face_is_taken(size):
    images = np.array(flat((224, 187, 149), size=size))
    expected = load().angles(jnp.asarray(images))
    images[0, : size // 3] = images[0, :, : size // 4] = (0.2, 0.4, 0.9)
    images[0, size // 2, ::3] = 0  # eyes
    np.testing.assert_allclose(load().angles(jnp.asarray(images)), expected, atol=1e-3)


def test_what_is_no_skin_is_no_tone():
    reward = load(group_size=3)
    colours = [(255, 255, 255), (40, 40, 200), (20, 180, 60)]
    assert np.isnan(reward.angles(flat(*colours))).all()
    np.testing.assert_array_equal(reward.classify(flat(*colours)), 0)
    # As bad as one tone alone; and with one person, that one counts.
    worst = -np.sqrt(1 - 1 / 5)
    np.testing.assert_allclose(reward({}, flat(*colours), {}), worst, rtol=1e-6)
    one = flat((224, 187, 149), *colours[:2])
    np.testing.assert_allclose(reward({}, one, {}), worst, rtol=1e-6)


def test_sees_the_tones_of_the_emoji_worlds_people():
    """docs/reward_models.md has the accuracy on more pictures, and on decoded and tinted ones."""
    pool = reward_pictures.make_pool(reward_pictures.draw(3, 200, reward_pictures.even_portrait))
    images = reward_pictures.as_float(pool.images)
    one_hot = jax.jit(load().classify)(images)
    guesses = np.where(one_hot.any(-1), one_hot.argmax(-1), -1)
    assert (guesses == pool.tones).mean() > 0.92
    assert (np.abs(guesses - pool.tones) <= 1).mean() > 0.97
    by_tone = [(guesses == pool.tones)[pool.tones == tone].mean() for tone in range(5)]
    assert min(by_tone) > 0.8


def test_parity_of_groups():
    people = flat((250, 220, 188), (224, 187, 149), (191, 143, 104), (155, 100, 61), (90, 70, 60))
    reward = load(group_size=5)
    scores = reward({}, jnp.concatenate([people, people[jnp.array([0, 0, 0, 0, 4])]]), {})
    frequencies = np.array([0.8, 0, 0, 0, 0.2])
    np.testing.assert_allclose(scores[:5], 0, atol=1e-6)
    np.testing.assert_allclose(scores[5:], -np.linalg.norm(frequencies - 0.2), rtol=1e-6)


def test_pictures_that_are_no_whole_groups_are_refused():
    with pytest.raises(ValueError, match="6 pictures do not divide into groups of 4: make the ba"):
        jax.eval_shape(ColourParity(group_size=4), {}, jnp.zeros((6, 16, 16, 3)), {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": (10.0, 41.0)}, "must fall"),
        ({"face": (0.7, 0.4, 0.3, 0.6)}, "top, bottom"),
        ({"path": "somewhere"}, "has no weights"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ColourParity.load(**{"path": ""} | options)
