import jax
import numpy as np
import pytest
from scipy.spatial import distance

from configs import emoji
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.evaluation import diversity
from diffusionrl_jax.rewards.jpeg_size import JpegSize
from diffusionrl_jax.rewards.scorers import load_scorer
from diffusionrl_jax.rewards.weighted_sum import WeightedSum


def random(*shape):
    return np.random.default_rng(0).uniform(size=shape).astype(np.float32)


def test_the_mean_distance_is_scipys():
    features = random(7, 5)
    expected = distance.pdist(features.astype(np.float64)).mean()
    assert diversity.mean_distance(features) == pytest.approx(expected, rel=1e-12)


def test_pictures_of_other_prompts_do_not_count():
    features = np.array([[0.0], [3.0], [100.0], [7.0], [8.0]])
    found = diversity.within_prompts(["a", "a", "alone", "b", "b"], features)
    assert found == {"a": 3.0, "b": 1.0}


@pytest.mark.parametrize("shape", [(32, 32), (16, 16), (70, 33), (5, 4)])
def test_the_distance_of_pixels_is_the_root_mean_square(shape):
    dark, bright = np.zeros((1, *shape, 3), np.float32), np.full((1, *shape, 3), 0.5, np.float32)
    found = diversity.mean_distance(diversity.pixel_features(np.concatenate([dark, bright])))
    assert found == pytest.approx(0.5, rel=1e-5)


def test_pixels_are_means_of_areas():
    images = random(1, 32, 32, 3)
    features = diversity.pixel_features(images)[0].reshape(16, 16, 3) * np.sqrt(16 * 16 * 3)
    np.testing.assert_allclose(features[3, 5], images[0, 6:8, 10:12].mean((0, 1)), rtol=1e-5)


def test_without_a_clip_pixels_are_compared():
    found = diversity.make_features([(JpegSize(), {})], make_mesh(1))
    assert found == (diversity.PIXELS, diversity.pixel_features)


def test_a_clip_is_found_in_a_sum_and_sees_each_picture_alone():
    config = emoji.get_config()
    parity, params = load_scorer(config.evaluation.scorers.parity, 2)
    both = WeightedSum({"size": JpegSize(), "parity": parity}, {"size": 1.0, "parity": 1.0})
    scorers = [(both, {"size": {}, "parity": params})]
    name, features = diversity.make_features(scorers, make_mesh(1), per_device=1)
    images = random(11, 32, 32, 3)  # No multiple of the eight devices.
    expected = np.asarray(jax.jit(parity.embed)(params, images))
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, rtol=1e-5)
    # A batch of another size is summed in another order.
    np.testing.assert_allclose(features(images), expected, atol=1e-5)
    assert name == diversity.CLIP
