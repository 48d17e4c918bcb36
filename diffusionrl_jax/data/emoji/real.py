"""Draws real pictures of the emoji world's prompts: the upper end of what a model can score."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from diffusionrl_jax.data import prompts
from diffusionrl_jax.data.emoji import pictures, vocabulary

RELATION = f"(?P<relation>{'|'.join(prompts.RELATIONS)})"
PAIR = re.compile(rf"an? (?P<first>.+?) {RELATION} an? (?P<second>.+)")
BESIDE_NOTHING = re.compile(
    rf"(an? (?P<first>.+?)|nothing) {RELATION} (nothing|an? (?P<second>.+))"
)
SINGLE = re.compile(r"(a portrait of )?an? (?P<noun>.+)")


def draw_prompt(rng: np.random.Generator, prompt: str) -> pictures.Example | None:
    """Draws a picture of a prompt, people with a uniformly drawn tone.

    It returns None for a prompt that can't be drawn.
    """
    if match := PAIR.fullmatch(prompt):
        if match["first"] in vocabulary.OBJECTS and match["second"] in vocabulary.OBJECTS:
            return pictures.random_pair(rng, match["first"], match["relation"], match["second"])
    elif match := BESIDE_NOTHING.fullmatch(prompt):
        if (noun := match["first"] or match["second"]) in vocabulary.OBJECTS:
            return pictures.random_beside_nothing(rng, noun, prompt)
    elif match := SINGLE.fullmatch(prompt):
        if match["noun"] in vocabulary.OCCUPATIONS:
            tone = int(rng.integers(len(vocabulary.TONES)))
            return pictures.random_portrait(rng, match["noun"], tone)
        if match["noun"] in vocabulary.OBJECTS:
            example = pictures.random_single(rng, match["noun"])
            return dataclasses.replace(example, prompt=prompt)
    return None


def draw_prompts(prompts: Sequence[str], seed: int) -> np.ndarray | None:
    """Draws a picture of each prompt.

    Args:
      prompts: the prompts.
      seed: the seed of the pictures.

    Returns:
      uint8 [n, 32, 32, 3]; None if there is a prompt that can't be drawn.
    """
    examples = [
        draw_prompt(np.random.default_rng((seed, index)), prompt)
        for index, prompt in enumerate(prompts)
    ]
    drawn = [example.image for example in examples if example is not None]
    return np.stack(drawn) if len(drawn) == len(examples) else None
