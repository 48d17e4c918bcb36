"""Pictures for the emoji world's reward models: drawn, spoiled, and as the VAE decodes them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from diffusionrl_jax.data import prompts
from diffusionrl_jax.data.emoji import pictures, vocabulary
from diffusionrl_jax.models.stable_diffusion.folder import load_stable_diffusion

OBJECTS = tuple(vocabulary.OBJECTS)
OCCUPATIONS = tuple(vocabulary.OCCUPATIONS)
LABELS = OBJECTS + OCCUPATIONS
SPOILS = ("blur", "noise", "cut_out", "morph", "halves", "colours", "fade")
LATENT_NOISE = 0.15  # The largest noise on latents, which have unit variance.


@dataclasses.dataclass(frozen=True)
class Pool:
    """Labelled pictures.

    Attributes:
      examples: what each picture shows.
      images: uint8 [n, 32, 32, 3].
      labels: int32 [n, 2], indices into `LABELS`, -1 for none.
      boxes: the objects' boxes, float32 [n, 2, 4], in pixels; zeros for none.
      tones: int32 [n], -1 where there is no person.
    """

    examples: tuple[pictures.Example, ...]
    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    tones: np.ndarray

    @functools.cached_property
    def by_label(self) -> list[np.ndarray]:
        """For each label, the rows that show it."""
        return [np.flatnonzero((self.labels == i).any(1)) for i in range(len(LABELS))]

    @functools.cached_property
    def by_kind(self) -> dict[str, np.ndarray]:
        """For each kind (singles, pairs, portraits), its rows."""
        kinds = np.array([example.kind for example in self.examples])
        return {kind: np.flatnonzero(kinds == kind) for kind in pictures.KIND_FREQUENCIES}

    def hard_negative(self, rng: np.random.Generator, row: int) -> tuple[int, float]:
        """Draws a picture that is easily taken for that of `row`.

        Returns:
          Its row, and the fraction of the prompt's things that it shows.
        """
        example, wanted = self.examples[row], set(self.labels[row]) - {-1}
        for _ in range(20):
            # Of a pair one object is shared; the other is missing or replaced.
            if example.kind == "pair":
                candidates = self.by_label[rng.choice(sorted(wanted))]
            else:
                candidates = self.by_kind[example.kind]
            candidate = int(rng.choice(candidates))
            shared = len(wanted & set(self.labels[candidate])) / len(wanted)
            if shared < 1:
                break
        return candidate, shared


def make_pool(examples: Sequence[pictures.Example], images: np.ndarray | None = None) -> Pool:
    """Gathers examples into a pool; `images` replaces their pictures (after a round trip)."""
    labels = np.full((len(examples), 2), -1, np.int32)
    boxes = np.zeros((len(examples), 2, 4), np.float32)
    index = {name: i for i, name in enumerate(LABELS)}
    for row, example in enumerate(examples):
        names = example.objects or (example.occupation,)
        labels[row, : len(names)] = [index[name] for name in names]
        boxes[row, : len(example.boxes)] = np.reshape(example.boxes, (-1, 4))
    if images is None:
        images = np.stack([example.image for example in examples])
    tones = np.array([example.tone for example in examples], np.int32)
    return Pool(tuple(examples), images, labels, boxes, tones)


def draw(seed: int, count: int, example: Callable | None = None) -> list[pictures.Example]:
    """Draws `count` examples of a seed.

    Args:
      seed: the seed of the examples.
      count: how many are drawn.
      example: a function from a generator to an example. By default it draws pretraining pictures,
        which name a single object as the tasks do.
    """
    example = example or functools.partial(pictures.random_example, plain=True)
    return [example(np.random.default_rng((seed, index))) for index in range(count)]


def even_portrait(rng: np.random.Generator) -> pictures.Example:
    """Draws a portrait; all tones are equally likely."""
    occupation = OCCUPATIONS[rng.integers(len(OCCUPATIONS))]
    return pictures.random_portrait(rng, occupation, int(rng.integers(len(vocabulary.TONES))))


def any_pair(rng: np.random.Generator, allowed: Callable) -> pictures.Example:
    """Draws a pair of two different objects of the whole vocabulary for which `allowed` is true."""
    while True:
        first, second = (OBJECTS[i] for i in rng.choice(len(OBJECTS), 2, replace=False))
        if allowed(first, second):
            relation = prompts.RELATIONS[rng.integers(len(prompts.RELATIONS))]
            return pictures.random_pair(rng, first, relation, second)


def _has_unseen_object(first: str, second: str) -> bool:
    return not {first, second}.isdisjoint(vocabulary.HELD_OUT_OBJECTS)


def trained_pair(rng: np.random.Generator) -> pictures.Example:
    """Draws a pair to train on: one that is not held out.

    The detector also learns the objects that the policy never sees in pairs.
    """
    return any_pair(rng, lambda *names: not vocabulary.is_held_out_pair(*names))


def unseen_pair(rng: np.random.Generator) -> pictures.Example:
    """Draws a held-out pair with at least one object that the policy never sees in pairs."""
    return any_pair(
        rng,
        lambda *names: _has_unseen_object(*names) and vocabulary.is_held_out_pair(*names),
    )


def held_out_pair(rng: np.random.Generator) -> pictures.Example:
    """Draws a held-out pair of objects that the policy sees in other pairs."""
    return any_pair(
        rng,
        lambda *names: not _has_unseen_object(*names) and vocabulary.is_held_out_pair(*names),
    )


def round_trips(vae_folder: str, images: np.ndarray, seed: int, batch: int = 64) -> np.ndarray:
    """Encodes and decodes pictures by a VAE, most with some noise on the latents.

    Args:
      vae_folder: a diffusers folder.
      images: uint8 [n, 32, 32, 3].
      seed: the seed of the latents' noise.
      batch: how many pictures are decoded at a time.

    Returns:
      uint8 [n, 32, 32, 3].
    """
    model, params = load_stable_diffusion(vae_folder)

    @jax.jit
    def round_trip(pixels, key):
        mean, _ = model.encode(params["vae"], pixels)
        strength_key, noise_key = jax.random.split(key)
        strength = LATENT_NOISE * jax.random.uniform(strength_key, (len(pixels), 1, 1, 1))
        return model.decode(
            params["vae"], mean + strength * jax.random.normal(noise_key, mean.shape)
        )

    result = []
    for start in range(0, len(images), batch):
        chunk = images[start : start + batch].astype(np.float32) / 255
        padded = np.pad(chunk, ((0, batch - len(chunk)), (0, 0), (0, 0), (0, 0)))
        decoded = round_trip(padded, jax.random.fold_in(jax.random.key(seed), start))
        result.append(np.round(np.asarray(decoded)[: len(chunk)] * 255).astype(np.uint8))
    return np.concatenate(result)


@functools.lru_cache
def _blur_matrix(sigma: float, size: int) -> np.ndarray:
    """Returns the matrix, [size, size], of a Gaussian blur along one side."""
    places = np.arange(size)
    kernel = np.exp(-0.5 * np.square((places[:, None] - places) / sigma))
    return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blurs float32 [size, size, 3] by a Gaussian; sigma is in pixels, rounded to a tenth."""
    if sigma < 0.1:
        return image
    matrix = _blur_matrix(round(float(sigma), 1), image.shape[0])
    rows = np.tensordot(matrix, image, 1)
    return np.tensordot(matrix, rows, (1, 1)).transpose(1, 0, 2)


def tint(rng: np.random.Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """Multiplies the whole picture by a colour, or blends it with one.

    Args:
      rng: NumPy's generator, which draws the colour and which of the two is done.
      image: float32 [32, 32, 3] in [0, 1].
      strength: from 0 (none) to 1 (halves the channels at most, or blends half at most).

    Returns:
      float32 [32, 32, 3].
    """
    share = strength * rng.uniform(0, 0.5)
    if rng.random() < 0.5:
        grey = rng.uniform(0, 1)
        colour = grey * rng.uniform(0, 1) + (1 - grey) * rng.uniform(0, 1, 3)
        return image * (1 - share) + image * share * colour
    colour = (
        rng.uniform(0, 1) * np.array([1.0, 0.75, 0.55]) if rng.random() < 0.5 else rng.random(3)
    )
    return (image * (1 - share) + share * colour).astype(np.float32)


def spoil(
    rng: np.random.Generator, image: np.ndarray, other: np.ndarray, kind: str, strength: float
) -> np.ndarray:
    """Makes a picture worse.

    Args:
      rng: NumPy's generator.
      image: float32 [32, 32, 3] in [0, 1].
      other: another picture, for "morph" and "halves".
      kind: one of `SPOILS`.
      strength: from 0 (untouched, or nearly) to 1 (hardly recognisable).

    Returns:
      float32 [32, 32, 3] in [0, 1].
    """
    size = image.shape[0]
    if kind == "blur":
        result = blur(image, 0.4 + 3 * strength)
    elif kind == "noise":
        result = image + rng.normal(0, 0.4 * strength, image.shape)
    elif kind == "cut_out":
        result = image.copy()
        for _ in range(2):
            side = round(size * (0.15 + 0.5 * strength))
            left, top = rng.integers(0, size - side + 1, 2)
            result[top : top + side, left : left + side] = rng.choice([1.0, rng.random()])
    elif kind == "morph":
        share = strength / 2
        result = image * (1 - share) + other * share
    elif kind == "halves":
        cut = round(size * (1 - strength / 2))
        window = (slice(cut, size), slice(None))[:: rng.choice([1, -1])]
        result = image.copy()
        result[window] = other[window]
    elif kind == "colours":
        mixing = np.eye(3) * (1 - strength) + strength * rng.dirichlet(np.ones(3) / 2, 3).T
        result = image @ mixing * (1 + strength * rng.uniform(-0.5, 0.3))
    else:  # fade
        share = 0.9 * strength
        result = image * (1 - share) + share * rng.choice([image.mean(), 1.0, rng.random()])
    return np.clip(result, 0, 1).astype(np.float32)


def lightly_disturbed(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Returns a picture that is as good as before: half of them get a little blur or noise."""
    choice = rng.random()
    if choice < 0.25:
        image = blur(image, rng.uniform(0.1, 0.5))
    elif choice < 0.5:
        image = image + rng.normal(0, rng.uniform(0, 0.03), image.shape)
    return np.clip(image, 0, 1).astype(np.float32)


def choose_pool(rng: np.random.Generator, pools: Sequence[Pool]) -> Pool:
    """Draws one of the pools (as drawn, and decoded by the VAE), all equally likely."""
    return pools[int(rng.integers(len(pools)))]


def as_float(images: np.ndarray) -> np.ndarray:
    """Converts uint8 to float32 in [0, 1]."""
    return images.astype(np.float32) / 255
