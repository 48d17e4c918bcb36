"""Batches and losses for the emoji world's reward models and its recogniser."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusionrl_jax.data.emoji import pictures
from diffusionrl_jax.emoji_world import reward_pictures
from diffusionrl_jax.emoji_world.reward_pictures import LABELS, OBJECTS, SPOILS, Pool
from diffusionrl_jax.models.parameters import apply
from diffusionrl_jax.models.towers import blip, owl_vit
from diffusionrl_jax.models.towers.recogniser import Recogniser
from diffusionrl_jax.rewards.detection import Detection
from diffusionrl_jax.rewards.image_reward import ImageReward
from diffusionrl_jax.rewards.preprocessing import square
from diffusionrl_jax.rewards.statistical_parity import StatisticalParity

PREFERENCE_SHARPNESS = 4.0  # The score's difference between a clean and a ruined picture.
HIDING_SPOILS = ("blur", "noise", "morph", "fade")  # Those that hide all objects alike.
CONFIDENCE_AT_FULL_TINT = 0.7


@dataclasses.dataclass(frozen=True)
class Objective:
    """What one model is trained on.

    Attributes:
      init: a function from a key to the parameters, of which those of the saved model are under
        "model".
      batch: a function from (rng, pools) to a tree of NumPy arrays.
      loss: a function from (params, batch) to a scalar.
    """

    init: Callable[[jax.Array], dict]
    batch: Callable[[np.random.Generator, Sequence[Pool]], dict]
    loss: Callable[[Mapping, Mapping], jax.Array]


def _multi_hot(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Turns label indices [n, 2] (-1 for none) and values [n] into float32 [n, labels]."""
    result = np.zeros((len(labels), len(LABELS)), np.float32)
    for column in labels.T:
        rows = np.flatnonzero(column >= 0)
        result[rows, column[rows]] = values[rows]
    return result


def _spoiled(rng, pool: Pool, row: int, kinds=SPOILS) -> tuple[np.ndarray, float]:
    """Returns a row's picture spoiled by a random kind and strength, and the strength."""
    strength = rng.random()
    other = reward_pictures.as_float(pool.images[rng.integers(len(pool.images))])
    image = reward_pictures.as_float(pool.images[row])
    return reward_pictures.spoil(rng, image, other, rng.choice(kinds), strength), strength


def _clean(rng, pool: Pool, row: int) -> np.ndarray:
    """Returns a row's picture, lightly disturbed."""
    image = reward_pictures.as_float(pool.images[row])
    return reward_pictures.lightly_disturbed(rng, image)


def preference_loss(scores: jax.Array, qualities: jax.Array) -> jax.Array:
    """Computes the Bradley-Terry loss of all comparisons between the candidates of a prompt.

    The preferred fraction of a comparison is a logistic function of the difference of qualities, so
    that the score learns degrees, and not only order.

    Args:
      scores: float [prompts, candidates].
      qualities: float [prompts, candidates] in [0, 1].

    Returns:
      The negative log-likelihood of a comparison, averaged over all, a scalar.
    """
    differences = scores[:, :, None] - scores[:, None]
    targets = jax.nn.sigmoid(PREFERENCE_SHARPNESS * (qualities[:, :, None] - qualities[:, None]))
    losses = optax.sigmoid_binary_cross_entropy(differences, targets)
    count = scores.shape[1]
    return jnp.sum(losses * (1 - jnp.eye(count))) / (scores.shape[0] * count * (count - 1))


def image_reward(
    reward: ImageReward, init_params: Callable[[jax.Array], dict[str, Any]], prompts: int = 24
) -> Objective:
    """Makes the objective of the preference model.

    It compares pictures of each prompt: its own, that one spoiled, and pictures of other things. A
    second head, which is thrown away afterwards, learns to name what the image encoder sees.

    Args:
      reward: the reward, without its parameters.
      init_params: a function from a key to the reward's parameters.
      prompts: how many prompts a batch has.
    """

    def init(key):
        model_key, namer_key = jax.random.split(key)
        width, count = reward.model.vision.config.hidden_size, len(LABELS)
        namer = {
            "kernel": jax.random.normal(namer_key, (width, count)) * width**-0.5,
            "bias": jnp.full(count, -5.0),  # A label is rare.
        }
        return {"model": init_params(model_key), "namer": namer}

    def batch(rng, pools):
        pool = reward_pictures.choose_pool(rng, pools)
        rows = rng.integers(len(pool.images), size=prompts)
        negatives = [pool.hard_negative(rng, row) for row in rows]
        clean = [_clean(rng, pool, row) for row in rows]
        spoiled = [_spoiled(rng, pool, row) for row in rows]
        other = [_clean(rng, pool, row) for row, _ in negatives]
        strengths = np.array([strength for _, strength in spoiled], np.float32)
        shared = np.array([fraction for _, fraction in negatives], np.float32)
        owners = np.stack([rows, rows, [row for row, _ in negatives]], 1)
        wanted, shown = pool.labels[rows], pool.labels[owners]
        things = (wanted >= 0).sum(1)
        # Another prompt's picture may show a thing of this prompt's.
        strangers = np.roll(shown[:, 0], 1, 0)
        common = (wanted[:, :, None] == strangers[:, None]) & (wanted >= 0)[:, :, None]
        stranger_shares = common.any(2).sum(1) / things
        qualities = [np.ones(prompts), 1 - strengths, shared, stranger_shares]
        certainty = np.stack([np.ones(prompts), 1 - strengths, np.ones(prompts)], 1)
        return {
            "images": np.stack([clean, [image for image, _ in spoiled], other], 1),
            "names": _multi_hot(shown.reshape(-1, 2), certainty.ravel()),
            "qualities": np.stack(qualities, 1).astype(np.float32),
            **reward.prepare([pool.examples[row].prompt for row in rows]),
        }

    def loss(params, batch):
        model = params["model"]
        images = batch["images"].reshape(-1, *batch["images"].shape[2:])
        pixels = square(images, reward.model.vision.config.image_size)
        tokens = blip.encode_image(reward.model, model, pixels)
        names = tokens[:, 1:] @ params["namer"]["kernel"] + params["namer"]["bias"]
        naming = optax.sigmoid_binary_cross_entropy(jnp.max(names, 1), batch["names"])
        own = tokens.reshape(prompts, 3, *tokens.shape[1:])
        candidates = jnp.concatenate([own, jnp.roll(own[:, :1], 1, 0)], 1)
        hidden = blip.encode_text(
            reward.model,
            model,
            candidates.reshape(-1, *tokens.shape[1:]),
            jnp.repeat(batch["input_ids"], 4, 0),
            jnp.repeat(batch["attention_mask"], 4, 0),
        )
        scores = reward.head(model, hidden).reshape(prompts, 4)
        return preference_loss(scores, batch["qualities"]) + 3 * jnp.mean(naming)

    return Objective(init, batch, loss)


def _patch_cover(boxes: np.ndarray, patches: int) -> np.ndarray:
    """Returns the share of each patch that a box covers, float32 [..., patches * patches]."""
    size = pictures.IMAGE_SIZE / patches
    low = np.arange(patches) * size
    left, top, right, bottom = (boxes[..., side, None] for side in range(4))
    across = np.clip(np.minimum(low + size, right) - np.maximum(low, left), 0, None) / size
    down = np.clip(np.minimum(low + size, bottom) - np.maximum(low, top), 0, None) / size
    return (down[..., :, None] * across[..., None, :]).reshape(*boxes.shape[:-1], -1)


def detection(
    reward: Detection, queries: np.ndarray, init_params: Callable[[jax.Array], dict], size: int = 64
) -> Objective:
    """Makes the detector's objective: every patch against every object's name, and the best patch.

    Spoiled pictures have soft targets, which fall to nothing where strong spoiling hides what is
    there: the confidence is that of a detector that knows what it cannot see.

    Args:
      reward: the reward, without its parameters.
      queries: the objects' tokenised names, int32 [objects, tokens].
      init_params: a function from a key to the full tree of OWL-ViT's parameters.
      size: how many pictures a batch has.
    """
    config = reward.model.vision.config
    patches = config.image_size // config.patch_size

    def batch(rng, pools):
        pool = reward_pictures.choose_pool(rng, pools)
        rows = rng.integers(len(pool.images), size=size)
        images, targets = [], np.ones(size, np.float32)
        for place, row in enumerate(rows):
            choice = rng.random()
            if choice < 0.25:
                image, strength = _spoiled(rng, pool, row, HIDING_SPOILS)
                targets[place] = 1 - strength
            elif choice < 0.4:
                strength = rng.random()
                image = reward_pictures.tint(rng, _clean(rng, pool, row), strength)
                targets[place] = 1 - (1 - CONFIDENCE_AT_FULL_TINT) * strength
            else:
                image = _clean(rng, pool, row)
            images.append(image)
        labels = np.where(pool.labels[rows] < len(OBJECTS), pool.labels[rows], -1)
        cover = _patch_cover(pool.boxes[rows], patches)
        by_patch = np.zeros((size, patches * patches, len(OBJECTS)), np.float32)
        for row, slot in zip(*np.nonzero(labels >= 0), strict=True):
            by_patch[row, :, labels[row, slot]] = cover[row, slot]
        return {
            "images": np.stack(images),
            "cover": by_patch,
            "targets": targets,
            "present": _multi_hot(labels, targets)[:, : len(OBJECTS)],
        }

    def loss(params, batch):
        model = params["model"]
        embedded = owl_vit.embed_queries(reward.model, model, jnp.asarray(queries))
        pixels = square(batch["images"], config.image_size)
        features = owl_vit.patch_features(reward.model, model, pixels)
        logits = owl_vit.class_logits(model, features, embedded)
        # Patches that a box covers in part are left out: either answer is fair.
        weights = jnp.where(batch["cover"] > 0, batch["cover"] > 0.6, 1.0)
        targets = (batch["cover"] > 0.6) * batch["targets"][:, None, None]
        by_patch = optax.sigmoid_binary_cross_entropy(logits, targets) * weights
        best = optax.sigmoid_binary_cross_entropy(jnp.max(logits, 1), batch["present"])
        return (by_patch.sum((1, 2)).mean() / 10) + best.sum(1).mean()

    return Objective(lambda key: {"model": init_params(key)}, batch, loss)


def _tinted_portrait(rng, pools: Sequence[Pool], strength: float) -> tuple[np.ndarray, Any]:
    """Draws a portrait under a tint of a random strength, and returns it with its tone."""
    pool = reward_pictures.choose_pool(rng, pools)
    row = rng.choice(pool.by_kind["portrait"])
    image = reward_pictures.tint(rng, _clean(rng, pool, row), strength * rng.random())
    return np.clip(image, 0, 1), pool.tones[row]


def statistical_parity(
    reward: StatisticalParity, init_params: Callable[[jax.Array], dict[str, Any]], size: int = 64
) -> Objective:
    """Makes the tone classifier's objective: the cross-entropy of the tone on portraits.

    The portraits are drawn from all that the pools have, and half of them are tinted.

    Args:
      reward: the reward, without its parameters.
      init_params: a function from a key to the reward's parameters.
      size: how many portraits a batch has.
    """

    def batch(rng, pools):
        drawn = [_tinted_portrait(rng, pools, rng.choice([0.0, 0.7])) for _ in range(size)]
        images, tones = zip(*drawn, strict=True)
        return {"images": np.stack(images), "tones": np.array(tones)}

    def loss(params, batch):
        logits = reward.logits(params["model"], batch["images"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["tones"])
        return jnp.mean(losses)

    return Objective(lambda key: {"model": init_params(key)}, batch, loss)


def recogniser(observer: Recogniser, size: int = 64) -> Objective:
    """Makes the recogniser's objective: the labels of all pictures, and the tones of some.

    Spoiled pictures count less for the labels. Tones are learned from portraits, of which half are
    strongly tinted.

    Args:
      observer: the recogniser, without its parameters.
      size: how many pictures a batch has.
    """
    portraits = size // 2

    def batch(rng, pools):
        images, labels, certainty = [], [], np.ones(size, np.float32)
        tones = np.full(size, -1, np.int32)
        for place in range(size):
            pool = reward_pictures.choose_pool(rng, pools)
            row = (
                rng.choice(pool.by_kind["portrait"])
                if place < portraits
                else rng.integers(len(pool.images))
            )
            image = _clean(rng, pool, row)
            choice = rng.random()
            if choice < 0.6:
                tones[place] = pool.tones[row]
                image = reward_pictures.tint(rng, image, rng.choice([0.0, 1.0]))
            elif choice < 0.8:
                image, strength = _spoiled(rng, pool, row, HIDING_SPOILS)
                certainty[place] = 1 - strength
            images.append(image)
            labels.append(pool.labels[row])
        return {
            "images": np.clip(np.stack(images), 0, 1).astype(np.float32),
            "present": _multi_hot(np.stack(labels), certainty),
            "tones": tones,
        }

    def loss(params, batch):
        labels, tones = apply(observer.module, {"params": params["model"]}, batch["images"])
        naming = optax.sigmoid_binary_cross_entropy(labels, batch["present"]).sum(1).mean()
        known = batch["tones"] >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(
            tones, jnp.maximum(batch["tones"], 0)
        )
        return naming + jnp.sum(losses * known) / jnp.maximum(jnp.sum(known), 1)

    def init(key):
        return {"model": observer.module.init(key, jnp.zeros((1, 32, 32, 3)))["params"]}

    return Objective(init, batch, loss)
