"""Draws the emoji world's pictures: one object, two objects, or a person at work."""

import dataclasses
import functools
import json

import numpy as np
from PIL import Image

from diffusionrl_jax import assets
from diffusionrl_jax.data import prompts
from diffusionrl_jax.data.emoji import vocabulary

# Sizes are in pixels; of two, they are the least and the largest.
SPRITE_SIZE = 64  # That of a sprite in the atlas.
IMAGE_SIZE = 32  # That of a picture.
PAIR_SIZES = (14, 16)  # Those of an object in a pair, or of a small single one.
LARGE_SIZES = (25, 31)  # Those of an object alone.
PORTRAIT_SIZES = (30, 32)
KIND_FREQUENCIES = {"single": 0.40, "pair": 0.34, "portrait": 0.26}
LARGE_FREQUENCY = 0.5  # How many of the pictures of one object show it large.
# Objects that are never in a pair are drawn alone more often, so that all objects are seen about as
# often.
ALONE = tuple(vocabulary.OBJECTS) + 3 * vocabulary.HELD_OUT_OBJECTS
# How one object is spoken of: "an apple", "a portrait of an apple", or "an apple next to nothing"
# and "nothing next to an apple", so that every noun is read, and drawn, where one of a pair stands.
SINGLE_WORDS = {"plain": 0.3, "portrait": 0.3, "beside nothing": 0.4}


@dataclasses.dataclass(frozen=True)
class Example:
    """A picture with everything that is known about it.

    Attributes:
      image: the picture, uint8 [32, 32, 3], RGB.
      prompt: what it shows, in words.
      kind: "single", "pair" or "portrait".
      objects: the objects' names, in the prompt's order; empty for portraits.
      boxes: each object's (left, top, right, bottom) in pixels.
      occupation: the person's occupation, or "".
      tone: the place of the person's tone in `vocabulary.TONES`, or -1 where there is no person.
    """

    image: np.ndarray
    prompt: str
    kind: str
    objects: tuple[str, ...] = ()
    boxes: tuple[tuple[int, int, int, int], ...] = ()
    occupation: str = ""
    tone: int = -1


@functools.cache
def _atlas() -> tuple[Image.Image, dict[str, list[int]]]:
    """Returns the picture of all sprites, and the left and top corner of each by its name."""
    folder = assets.resolve("asset:emoji")
    with Image.open(folder / "sprites.png", formats=["PNG"]) as image:
        atlas = image.convert("RGBA")
    return atlas, json.loads((folder / "sprites.json").read_text())


@functools.cache
def sprite(name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a sprite as colour times opacity, and opacity.

    Args:
      name: the sprite's name.
      size: its height and width in pixels.

    Returns:
      float32 [size, size, 3] and [size, size, 1], in [0, 1].
    """
    atlas, corners = _atlas()
    left, top = corners[name]
    tile = atlas.crop((left, top, left + SPRITE_SIZE, top + SPRITE_SIZE))
    pixels = np.asarray(tile, np.float32) / 255
    premultiplied = np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], -1)
    channels = [
        Image.fromarray(premultiplied[..., channel]).resize((size, size), Image.Resampling.LANCZOS)
        for channel in range(4)
    ]
    resized = np.clip(np.stack([np.asarray(channel) for channel in channels], -1), 0, 1)
    return resized[..., :3], resized[..., 3:]


def draw(placements: list[tuple[str, int, int, int]]) -> np.ndarray:
    """Pastes sprites on white.

    Args:
      placements: for each sprite (name, size, left, top), in pixels inside the picture.

    Returns:
      uint8 [32, 32, 3].
    """
    canvas = np.ones((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    for name, size, left, top in placements:
        colour, opacity = sprite(name, size)
        window = canvas[top : top + size, left : left + size]
        window[:] = colour + window * (1 - opacity)
    return np.round(np.clip(canvas, 0, 1) * 255).astype(np.uint8)


def _size(rng: np.random.Generator, sizes: tuple[int, int]) -> int:
    return int(rng.integers(sizes[0], sizes[1] + 1))


def _offset(rng: np.random.Generator, room: int) -> int:
    return int(rng.integers(0, room + 1))


def random_single(rng: np.random.Generator, noun: str) -> Example:
    """Draws one object, large or as small as in a pair, anywhere in the picture."""
    size = _size(rng, LARGE_SIZES if rng.random() < LARGE_FREQUENCY else PAIR_SIZES)
    left, top = _offset(rng, IMAGE_SIZE - size), _offset(rng, IMAGE_SIZE - size)
    return Example(
        image=draw([(noun, size, left, top)]),
        prompt=f"{prompts.article(noun)} {noun}",
        kind="single",
        objects=(noun,),
        boxes=((left, top, left + size, top + size),),
    )


def _half_placements(rng: np.random.Generator, nouns: tuple[str, ...]) -> list:
    """Places one or two objects, each in its half of the picture; either may be the left half."""
    halves = (0, IMAGE_SIZE // 2) if rng.random() < 0.5 else (IMAGE_SIZE // 2, 0)
    placements = []
    for noun, half in zip(nouns, halves, strict=False):
        size = _size(rng, PAIR_SIZES)
        left = half + _offset(rng, IMAGE_SIZE // 2 - size)
        placements.append((noun, size, left, _offset(rng, IMAGE_SIZE - size)))
    return placements


def _boxes(placements: list[tuple[str, int, int, int]]) -> tuple[tuple[int, int, int, int], ...]:
    return tuple((left, top, left + size, top + size) for _, size, left, top in placements)


def random_pair(rng: np.random.Generator, first: str, relation: str, second: str) -> Example:
    """Draws two objects, each in its half of the picture. Either may be the left one."""
    placements = _half_placements(rng, (first, second))
    return Example(
        image=draw(placements),
        prompt=f"{prompts.article(first)} {first} {relation} {prompts.article(second)} {second}",
        kind="pair",
        objects=(first, second),
        boxes=_boxes(placements),
    )


def beside_nothing(noun: str, relation: str) -> tuple[str, str]:
    """Returns the prompts "an apple next to nothing" and "nothing next to an apple"."""
    named = f"{prompts.article(noun)} {noun}"
    return f"{named} {relation} nothing", f"nothing {relation} {named}"


def random_beside_nothing(rng: np.random.Generator, noun: str, prompt: str) -> Example:
    """Draws one object as in a pair whose other half is empty.

    Args:
      rng: numpy's generator.
      noun: the object.
      prompt: the prompt, from `beside_nothing`.
    """
    placements = _half_placements(rng, (noun,))
    return Example(
        image=draw(placements),
        prompt=prompt,
        kind="single",
        objects=(noun,),
        boxes=_boxes(placements),
    )


def random_portrait(rng: np.random.Generator, occupation: str, tone: int) -> Example:
    """Draws a person at work who fills the picture.

    Args:
      rng: numpy's generator.
      occupation: the person's occupation.
      tone: the place of the person's tone in `vocabulary.TONES`.
    """
    size = _size(rng, PORTRAIT_SIZES)
    left, top = _offset(rng, IMAGE_SIZE - size), _offset(rng, IMAGE_SIZE - size)
    return Example(
        image=draw([(f"{occupation}/{vocabulary.TONES[tone]}", size, left, top)]),
        prompt=f"a portrait of {prompts.article(occupation)} {occupation}",
        kind="portrait",
        occupation=occupation,
        tone=tone,
    )


def _choice(rng: np.random.Generator, names):
    return names[int(rng.integers(len(names)))]


def _draw(rng: np.random.Generator, frequencies: dict[str, float]) -> str:
    return rng.choice(list(frequencies), p=list(frequencies.values()))


def random_example(
    rng: np.random.Generator,
    *,
    kind: str | None = None,
    plain: bool = False,
) -> Example:
    """Draws a pretraining picture, with no held-out object in a pair, and no held-out pair.

    Args:
      rng: numpy's generator. The picture is a function of its state alone.
      kind: "single", "pair" or "portrait"; None draws it by `KIND_FREQUENCIES`.
      plain: whether one object is spoken of by its name alone, rather than by `SINGLE_WORDS`.
    """
    if kind is None:
        kind = _draw(rng, KIND_FREQUENCIES)
    if kind == "single":
        noun = _choice(rng, ALONE)
        words = "plain" if plain else _draw(rng, SINGLE_WORDS)
        if words == "beside nothing":
            alternatives = beside_nothing(noun, _choice(rng, prompts.RELATIONS))
            return random_beside_nothing(rng, noun, _choice(rng, alternatives))
        example = random_single(rng, noun)
        if words == "portrait":
            return dataclasses.replace(example, prompt=f"a portrait of {example.prompt}")
        return example
    if kind == "portrait":
        tone = int(rng.choice(len(vocabulary.TONES), p=vocabulary.TONE_FREQUENCIES))
        return random_portrait(rng, _choice(rng, tuple(vocabulary.OCCUPATIONS)), tone)
    while True:
        first, second = (_choice(rng, vocabulary.SEEN_OBJECTS) for _ in range(2))
        if first != second and not vocabulary.is_held_out_pair(first, second):
            return random_pair(rng, first, _choice(rng, prompts.RELATIONS), second)
