"""Tells how good the emoji world's reward models are, on pictures that they were not trained on."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from etils import epath

from diffusionrl_jax.emoji_world import reward_pictures
from diffusionrl_jax.emoji_world.reward_pictures import LABELS, SPOILS, Pool
from diffusionrl_jax.models.towers.recogniser import load_recogniser
from diffusionrl_jax.rewards import Detection, ImageReward, StatisticalParity

TEST_SEED = 10**6
BATCH = 128


def in_batches(function: Callable, *arrays) -> np.ndarray:
    """Applies a jitted function to arrays in batches of `BATCH` rows; the last is padded."""
    results = []
    for start in range(0, len(arrays[0]), BATCH):
        chunk = [array[start : start + BATCH] for array in arrays]
        missing = BATCH - len(chunk[0])
        padded = [np.concatenate([part, np.repeat(part[:1], missing, 0)]) for part in chunk]
        output = jax.tree.map(lambda x, k=missing: np.asarray(x)[: BATCH - k], function(*padded))
        results.append(output)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def test_pools(count: int, vae: str | None) -> dict[str, Pool]:
    """Draws pictures to test on: as in training, held-out pairs, unseen objects, and portraits.

    Args:
      count: how many pictures each pool has.
      vae: a diffusers folder, through whose VAE the pictures go for a second pool of each kind;
        None or empty for none.

    Returns:
      Name -> pool.
    """
    kinds = {
        "as trained": None,
        "held-out pairs": reward_pictures.held_out_pair,
        "unseen objects": reward_pictures.unseen_pair,
        "portraits": reward_pictures.even_portrait,
    }
    pools = {}
    for offset, (name, example) in enumerate(kinds.items()):
        examples = reward_pictures.draw(TEST_SEED + offset, count, example)
        pools[name] = reward_pictures.make_pool(examples)
        if vae:
            images = reward_pictures.round_trips(vae, pools[name].images, TEST_SEED)
            pools[f"{name}, decoded"] = reward_pictures.make_pool(examples, images)
    return pools


def image_reward(folder: epath.Path, pools: dict[str, Pool]) -> dict[str, float]:
    """Measures how often the preference model scores the better one of two pictures higher.

    Returns:
      Kind of comparison -> fraction of comparisons, and mean scores.
    """
    reward, params = ImageReward.load(str(folder))
    jitted = jax.jit(functools.partial(reward, params))

    def score(images, prompts):
        inputs = reward.prepare(prompts)
        tree = ("input_ids", "attention_mask")
        return in_batches(
            lambda x, *rest: jitted(x, dict(zip(tree, rest, strict=True))),
            images,
            *(inputs[key] for key in tree),
        )

    results = {}
    for name, pool in pools.items():
        rng = np.random.default_rng(TEST_SEED)
        images = reward_pictures.as_float(pool.images)
        prompts = [example.prompt for example in pool.examples]
        clean = score(images, prompts)
        results[f"{name}: mean score"] = float(clean.mean())
        others = images[rng.permutation(len(images))]
        for kind in SPOILS if name.startswith("as trained") else ():
            for strength in (0.3, 0.7):
                spoiled = [
                    reward_pictures.spoil(rng, image, other, kind, strength)
                    for image, other in zip(images, others, strict=True)
                ]
                wins = clean > score(np.stack(spoiled), prompts)
                results[f"{name}: {kind} {strength}"] = float(wins.mean())
        negatives = [pool.hard_negative(rng, row) for row in range(len(images))]
        rows = [row for row, fraction in negatives]
        mismatched = score(images[rows], prompts)
        wins = clean > mismatched
        results[f"{name}: mismatched"] = float(wins.mean())
        results[f"{name}: mismatched, mean score"] = float(mismatched.mean())
    return results


def average_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Returns the mean precision at each relevant item, with the items ranked by score."""
    ranked = relevant[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float(precision[ranked].mean())


def detection(folder: epath.Path, pools: dict[str, Pool]) -> dict[str, float]:
    """Measures the detector's confidence in what is there and in what is not.

    Returns:
      Name -> number: the fractions of confidences above one half, and the mean average precision.
    """
    reward, params = Detection.load(str(folder), exclusive=False, max_objects=len(LABELS))
    count = len(reward.objects)
    everything = {
        "objects": np.tile(np.arange(count, dtype=np.int32), (BATCH, 1)),
        "mask": np.ones((BATCH, count), np.float32),
    }
    jitted = jax.jit(lambda images: reward.confidences(params, images, everything))
    results = {}
    for name, pool in pools.items():
        confidences = in_batches(jitted, reward_pictures.as_float(pool.images))
        present = (pool.labels[:, :, None] == np.arange(count)).any(1)
        results[f"{name}: false alarms"] = float((confidences[~present] > 0.5).mean())
        results[f"{name}: largest wrong > 0.5"] = float(
            (np.where(present, 0, confidences).max(1) > 0.5).mean()
        )
        if present.any():
            results[f"{name}: found"] = float((confidences[present] > 0.5).mean())
            results[f"{name}: mean confidence"] = float(confidences[present].mean())
            shown = np.flatnonzero(present.any(0))
            precisions = [average_precision(confidences[:, k], present[:, k]) for k in shown]
            results[f"{name}: mean average precision"] = float(np.mean(precisions))
    return results


def tinted(pool: Pool) -> np.ndarray:
    """Returns a pool's pictures under strong tints, float32 [n, 32, 32, 3]."""
    rng = np.random.default_rng(TEST_SEED)
    images = reward_pictures.as_float(pool.images)
    return np.clip([reward_pictures.tint(rng, image, 1.0) for image in images], 0, 1).astype(
        np.float32
    )


def _tone_accuracies(classify: Callable, pools: dict[str, Pool]) -> dict[str, float]:
    """Returns how often a classifier finds the tone, plain and tinted, in pools of people."""
    results = {}
    for name, pool in pools.items():
        if (pool.tones < 0).any():
            continue
        for suffix, images in (
            ("", reward_pictures.as_float(pool.images)),
            (", tinted", tinted(pool)),
        ):
            guesses = in_batches(classify, images).argmax(1)
            results[f"{name}{suffix}: tone"] = float((guesses == pool.tones).mean())
            results[f"{name}{suffix}: tone within one"] = float(
                (np.abs(guesses - pool.tones) <= 1).mean()
            )
    return results


def statistical_parity(folder: epath.Path, pools: dict[str, Pool]) -> dict[str, float]:
    """Measures how often the classifier finds the tone, also on tinted pictures."""
    reward, params = StatisticalParity.load(str(folder))
    return _tone_accuracies(jax.jit(functools.partial(reward.classify, params)), pools)


def recogniser(folder: epath.Path, pools: dict[str, Pool]) -> dict[str, float]:
    """Measures how often the recogniser finds a picture's labels, and the tone.

    Labels are found if all of a picture's are likelier than any other.
    """
    observer, params = load_recogniser(str(folder))
    jitted = jax.jit(functools.partial(observer.recognise, params))
    results = _tone_accuracies(lambda images: jitted(images)[1], pools)
    for name, pool in pools.items():
        probabilities, _ = in_batches(jitted, reward_pictures.as_float(pool.images))
        present = (pool.labels[:, :, None] == np.arange(len(LABELS))).any(1)
        least = np.where(present, probabilities, 1).min(1)
        results[f"{name}: labels"] = float(
            (least > np.where(present, 0, probabilities).max(1)).mean()
        )
        results[f"{name}: labels above one half"] = float((probabilities[present] > 0.5).mean())
    return results


EVALUATIONS = {
    "image_reward": image_reward,
    "detection": detection,
    "statistical_parity": statistical_parity,
    "recogniser": recogniser,
}
