"""The shipped reward models on pictures drawn from a seed that they were not trained on."""

import jax
import numpy as np
import pytest

from diffusionrl_jax import assets
from diffusionrl_jax.data.emoji import vocabulary
from diffusionrl_jax.emoji_world import reward_pictures
from diffusionrl_jax.models.towers.recogniser import load_recogniser
from diffusionrl_jax.rewards import REWARDS

SEED = 123456
COUNT = 48


def drawn(example=None):
    pool = reward_pictures.make_pool(reward_pictures.draw(SEED, COUNT, example))
    return pool, reward_pictures.as_float(pool.images)


@pytest.mark.parametrize("name", ["image_reward", "detection"])
def test_the_right_prompt_scores_higher_than_another_pictures(name):
    reward, params = REWARDS[name].load(f"asset:emoji/{name}")
    pool, images = drawn(reward_pictures.held_out_pair)
    prompts = [example.prompt for example in pool.examples]
    score = jax.jit(reward)
    right = score(params, images, reward.prepare(prompts))
    wrong = score(params, images, reward.prepare(np.roll(prompts, 1).tolist()))
    assert np.isfinite(right).all()
    assert np.mean(np.asarray(right) > np.asarray(wrong)) > 0.9


def test_image_reward_prefers_clean_pictures():
    reward, params = REWARDS["image_reward"].load("asset:emoji/image_reward")
    pool, images = drawn()
    rng = np.random.default_rng(SEED)
    inputs = reward.prepare([example.prompt for example in pool.examples])
    noisy = [reward_pictures.spoil(rng, image, image, "noise", 0.7) for image in images]
    score = jax.jit(reward)
    better = score(params, images, inputs) > score(params, np.stack(noisy), inputs)
    assert np.mean(better) > 0.9


@pytest.mark.parametrize(
    ("name", "folder"),
    [("image_reward", "image_reward"), ("detection", "detection"), ("recognition", "recogniser")],
)
def test_rewards_have_a_gradient_if_they_say_so(name, folder):
    reward, params = REWARDS[name].load(f"asset:emoji/{folder}")
    pool, images = drawn(reward_pictures.held_out_pair)
    images, inputs = images[:2], reward.prepare([one.prompt for one in pool.examples[:2]])
    gradient = jax.jit(jax.grad(lambda images: reward(params, images, inputs).sum()))(images)
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max() > 0) == getattr(reward, "has_gradient", True)


def test_tones_are_told_apart_by_the_reward_and_by_the_observer():
    pool, images = drawn(reward_pictures.even_portrait)
    reward, params = REWARDS["statistical_parity"].load("asset:emoji/statistical_parity")
    assert reward.classes == vocabulary.TONES
    guesses = np.argmax(jax.jit(reward.classify)(params, images), -1)
    assert np.mean(guesses == pool.tones) > 0.8
    observer, params = load_recogniser()
    _, tones = jax.jit(observer.recognise)(params, images)
    assert observer.tones == vocabulary.TONES
    assert np.mean(np.argmax(tones, -1) == pool.tones) > 0.8


def test_shipped_weights_are_small():
    names = ("image_reward", "detection", "statistical_parity", "recogniser")
    files = [assets.resolve(f"asset:emoji/{name}") / "model.safetensors" for name in names]
    assert sum(file.stat().length for file in files) < 6_000_000
