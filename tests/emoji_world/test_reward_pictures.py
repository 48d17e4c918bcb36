"""The pictures that the emoji world's reward models are trained on."""

import numpy as np
import pytest
import scipy.ndimage

from diffusionrl_jax.data.emoji import vocabulary
from diffusionrl_jax.emoji_world import reward_pictures


def test_blur_is_gaussian():
    image = np.random.default_rng(0).random((32, 32, 3), dtype=np.float32)
    expected = scipy.ndimage.gaussian_filter(image, (1.5, 1.5, 0), truncate=8)
    # Away from the borders, where the two extend the picture differently.
    middle = slice(12, 20)
    ours = reward_pictures.blur(image, 1.5)
    np.testing.assert_allclose(ours[middle, middle], expected[middle, middle], atol=1e-5)


@pytest.mark.parametrize("kind", reward_pictures.SPOILS)
def test_spoils_grow_with_strength(kind):
    examples = reward_pictures.draw(3, 8)
    images = reward_pictures.as_float(np.stack([example.image for example in examples]))

    def damage(strength):
        rng = np.random.default_rng(1)
        spoiled = [
            reward_pictures.spoil(rng, image, other, kind, strength)
            for image, other in zip(images, images[::-1], strict=True)
        ]
        assert np.min(spoiled) >= 0 and np.max(spoiled) <= 1
        return np.abs(np.stack(spoiled) - images).mean()

    assert damage(0.2) < damage(0.9)


def test_held_out_pairs_are_held_out():
    for example in reward_pictures.draw(0, 50, reward_pictures.trained_pair):
        assert not vocabulary.is_held_out_pair(*example.objects)
    for example in reward_pictures.draw(0, 50, reward_pictures.unseen_pair):
        assert vocabulary.is_held_out_pair(*example.objects)
        assert set(example.objects) & set(vocabulary.HELD_OUT_OBJECTS)


def test_hard_negatives_of_pairs_share_an_object():
    pool = reward_pictures.make_pool(reward_pictures.draw(0, 600))
    rng = np.random.default_rng(0)
    pairs = [row for row, example in enumerate(pool.examples) if example.kind == "pair"]
    negatives = [pool.hard_negative(rng, row) for row in pairs[:50]]
    assert np.mean([fraction == 0.5 for _, fraction in negatives]) > 0.9
