"""The observer, against PyTorch and on pictures that it has not seen."""

import jax
import numpy as np

from diffusionrl_jax.emoji_world import reward_pictures
from diffusionrl_jax.models.towers.recogniser import load_recogniser


def test_the_observer_names_objects_and_occupations():
    observer, params = load_recogniser()
    assert observer.labels == reward_pictures.LABELS
    pool = reward_pictures.make_pool(reward_pictures.draw(seed=123456, count=48))
    images = reward_pictures.as_float(pool.images)
    labels, _ = jax.jit(observer.recognise)(params, images)
    present = (pool.labels[:, :, None] == np.arange(len(observer.labels))).any(1)
    worst_right = np.where(present, labels, 1).min(1)
    best_wrong = np.where(present, 0, labels).max(1)
    assert np.mean(worst_right > best_wrong) > 0.8
