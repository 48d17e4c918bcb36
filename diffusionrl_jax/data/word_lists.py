"""The paper's word lists, and the prompts that are made of them (Secs. 4.1 and 4.3).

The paper trains on 450 of its 532 object classes, without saying which, and on all of its 100
occupations. Here the words that are held out are those with the smallest hashes.
"""

from collections.abc import Callable

import numpy as np

from diffusionrl_jax.data import prompts
from diffusionrl_jax.data.files import resolve
from diffusionrl_jax.data.prompt_files import read_lines
from diffusionrl_jax.data.prompt_index import hashes_of, held_out
from diffusionrl_jax.data.sources import find_files
from diffusionrl_jax.mistakes import UserError

HELD_OUT_OBJECTS = 82
HELD_OUT_OCCUPATIONS = 20


def read_words(path: str, count: int = 0, split: str = "train") -> tuple[str, ...]:
    """Returns the different words of a list, in its order.

    Args:
      path: a UTF-8 text file with one entry, of a word or several, a line.
        `asset:words/objects.txt` is one.
      count: how many words are held out.
      split: "train" (all but those) or "test" (only those).

    Raises:
      UserError, FileNotFoundError: there is no such list, or it can't be split so.
    """
    lines = (
        line.strip()
        for file in find_files(str(resolve(path, "words")))
        for line in read_lines(file)
    )
    words = tuple(dict.fromkeys(filter(None, lines)))
    if not words:
        raise UserError(f"{path} has no word: write one a line, in UTF-8.")
    hashes = hashes_of(word.encode() for word in words)
    _, first = np.unique(hashes, return_index=True)
    if len(first) < len(words):
        raise UserError(f"{path} has two words of one hash: change one a little.")
    return tuple(words[index] for index in held_out(hashes, count, split, path))


def objects(split: str) -> tuple[str, ...]:
    """Returns the 450 objects to train on, the 82 to test with, or all."""
    return _split("asset:words/objects.txt", HELD_OUT_OBJECTS, split)


def occupations(split: str) -> tuple[str, ...]:
    """Returns all 100 occupations, as the paper uses them, or 80 to train on, or 20 held out."""
    return _split("asset:words/occupations.txt", HELD_OUT_OCCUPATIONS, split)


def _split(path: str, count: int, split: str) -> tuple[str, ...]:
    return read_words(path) if split == "all" else read_words(path, count, split)


PROMPT_SETS: dict[str, Callable[[str, int], prompts.PromptSource]] = {
    "objects": lambda split, seed: prompts.PairPrompts(objects(split), prompts.RELATIONS, seed),
    "occupations": lambda split, seed: prompts.TemplatePrompts(
        prompts.PORTRAIT, occupations(split), seed
    ),
}
