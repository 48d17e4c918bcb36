"""Prompt sources with random access: `source[i]` is the i-th prompt of an endless stream.

`source[i]` is a pure function of the source's prompts, its seed and i. A run therefore resumes
exactly at any step, on any number of hosts, with no iterator state to save. Every source passes
through all of its prompts once an epoch, shuffled anew each time (by grain's index shuffle, which
holds no permutation in memory).
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol, cast

import grain.python as grain
import numpy as np

from diffusionrl_jax.mistakes import UserError

# These are the paper's (Secs. 4.1 and 4.3).
RELATIONS = ("and", "next to", "near", "on side of", "beside")
PORTRAIT = "a portrait of {article} {noun}"

VOWELS = "aeiou"
# Words that begin so are written with a vowel and spoken with a consonant ("yoo", "w"); those of
# the next list the other way round.
CONSONANT_SOUNDS = tuple(
    "eu ewe one once ubiq ufo uk uni ura uri uro usa use usu ute uti uto".split()
)
VOWEL_SOUNDS = ("heir", "honest", "honor", "honour", "hour", "x-ray", "unim", "unin", "unid")
VOWEL_LETTERS = "AEFHILMNORSX"


class PromptSource(Protocol):
    """An endless, random-access stream of prompts."""

    def __getitem__(self, index: int) -> str:
        """Returns the prompt at a global index of 0 or more."""
        ...


def article(noun: str) -> str:
    """Returns a noun's indefinite article, by its first sound: "an hour", "a unicorn"."""
    word = noun.split()[0]
    if len(word) > 1 and word.isupper():
        return "an" if word[0] in VOWEL_LETTERS else "a"
    word = word.lower()
    if word.startswith(VOWEL_SOUNDS):
        return "an"
    return "an" if word[0] in VOWELS and not word.startswith(CONSONANT_SOUNDS) else "a"


class ShuffledPrompts:
    """Endless epochs over a finite sequence of prompts, each epoch in another order.

    Args:
      prompts: the distinct prompts, which are indexed, and may be computed on access.
      seed: the seed of the order, 0 to 2**32 - 1.

    Raises:
      UserError: there is no prompt.
    """

    def __init__(self, prompts: Sequence[str], seed: int):
        if not len(prompts):
            raise UserError("There is no prompt to draw from: give at least one.")
        self.prompts = prompts
        # grain's annotation admits None, which only a filtered data set holds.
        order = grain.MapDataset.range(len(prompts)).shuffle(seed=seed).repeat()
        self._order = cast(Sequence[int], order)

    def __getitem__(self, index: int) -> str:
        return self.prompts[int(self._order[index])]


class TemplatePrompts(ShuffledPrompts):
    """A template filled with each word: "a portrait of {article} {noun}" with "judge" and others.

    Args:
      template: the template.
      words: the nouns that it is filled with.
      seed: the seed of the order.

    Raises:
      UserError: the template has no {noun}, or a field other than {article} and {noun}.
    """

    def __init__(self, template: str, words: Sequence[str], seed: int):
        try:
            first, second = (template.format(article="a", noun=noun) for noun in "xy")
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"Cannot fill the template {template!r} ({error}): use only {{article}} and"
                " {noun}."
            ) from None
        if first == second:
            raise UserError(f"The template {template!r} lacks {{noun}}: say where the words go.")
        super().__init__([template.format(article=article(w), noun=w) for w in words], seed)


class PairPrompts(ShuffledPrompts):
    """The compositionality prompts "a(n) A <relation> a(n) B" with A and B different (Sec. 4.1).

    They are all ordered pairs with all relations, computed on access: 450 objects and 5 relations
    make a million prompts that are never listed.

    Args:
      objects: the nouns, at least two.
      relations: the words between them, such as "next to".
      seed: the seed of the order.
      exclude: pairs that are never used: a collection of (A, B), either way round, or a function of
        (A, B) that is true for a pair to leave out.

    Raises:
      UserError: there are fewer than two objects, there is no relation, or every pair is excluded.
    """

    def __init__(
        self,
        objects: Sequence[str],
        relations: Sequence[str],
        seed: int,
        exclude: Callable[[str, str], bool] | Collection[tuple[str, str]] = (),
    ):
        if len(objects) < 2 or not relations:
            raise UserError(
                f"Pairs need at least 2 objects and 1 relation, not {len(objects)} and"
                f" {len(relations)}: add some."
            )
        pairs = _Pairs(tuple(objects), tuple(relations), exclude)
        if not len(pairs):
            raise UserError(f"All pairs of the {len(objects)} objects are excluded: keep some.")
        super().__init__(pairs, seed)


class _Pairs(Sequence):
    """The prompts of PairPrompts in a fixed order: by pair, then by relation."""

    def __init__(self, objects, relations, exclude):
        self.objects, self.relations = objects, relations
        if not callable(exclude):
            held_out = {frozenset(pair) for pair in exclude}
            self._kept = self._filter(lambda a, b: {a, b} in held_out) if held_out else None
        else:
            self._kept = self._filter(exclude)

    def _filter(self, exclude) -> np.ndarray:
        count = len(self.objects) * (len(self.objects) - 1)
        return np.array([n for n in range(count) if not exclude(*self._pair(n))], np.int64)

    def _pair(self, number: int) -> tuple[str, str]:
        first, second = divmod(number, len(self.objects) - 1)
        return self.objects[first], self.objects[second + (second >= first)]

    def __len__(self) -> int:
        count = len(self.objects) * (len(self.objects) - 1)
        return len(self.relations) * (count if self._kept is None else len(self._kept))

    def __getitem__(self, index: int) -> str:
        number, relation = divmod(index, len(self.relations))
        first, second = self._pair(number if self._kept is None else int(self._kept[number]))
        words = article(first), first, self.relations[relation], article(second), second
        return " ".join(words)


class MixturePrompts:
    """Several sources interleaved in fixed proportions (grain's `MapDataset.mix`).

    Every stretch of the stream holds the sources in proportion to the weights, and each source is
    still passed through in its own order without leaving a prompt out.

    Args:
      sources: the sources.
      weights: a positive weight for each source.

    Raises:
      UserError: there is not one positive weight for each source.
    """

    def __init__(self, sources: Sequence[PromptSource], weights: Sequence[float]):
        if not sources or len(sources) != len(weights) or min(weights) <= 0:
            raise UserError(
                f"A mixture of {len(sources)} sources cannot have the weights {list(weights)}:"
                " give each source one positive weight."
            )
        streams = [
            grain.MapDataset.range(1).repeat().map_with_index(lambda index, _, n=n: (n, index))
            for n in range(len(sources))
        ]
        self.sources = tuple(sources)
        choices = grain.MapDataset.mix(streams, weights)
        self._choices = cast(Sequence[tuple[int, int]], choices)

    def __getitem__(self, index: int) -> str:
        source, inner_index = self._choices[index]
        return self.sources[source][inner_index]


def _lists(source: PromptSource) -> list[Sequence[str]] | None:
    """Returns what a finite source holds, or a mixture of such; None for one that can't tell."""
    if isinstance(source, ShuffledPrompts):
        return [source.prompts]
    if not isinstance(source, MixturePrompts):
        return None
    parts = [held for part in source.sources if (held := _lists(part)) is not None]
    known = len(parts) == len(source.sources)
    return list(itertools.chain.from_iterable(parts)) if known else None


def first_prompts(source: PromptSource, most: int) -> Iterator[str]:
    """Returns all prompts of a source that holds at most so many, or else the first of its stream.

    Args:
      source: any source.
      most: how many prompts are returned at most.
    """
    lists = _lists(source)
    if lists is None or sum(map(len, lists)) > most:
        return (source[index] for index in range(most))
    return itertools.chain.from_iterable(lists)


def prompt_places(source: PromptSource, most: int) -> dict[str, int]:
    """Numbers the different prompts of a source, in the order in which it holds them.

    Args:
      source: a finite source, or a mixture of such.
      most: how many prompts it may hold, repeats counted.

    Returns:
      The number of each prompt, from 0.

    Raises:
      UserError: the source holds more, or can't tell what it holds.
    """
    lists = _lists(source)
    if lists is None:
        raise UserError("They cannot be listed.")
    if (count := sum(map(len, lists))) > most:
        raise UserError(f"There are {count}, more than {most}.")
    different = dict.fromkeys(prompt for prompts in lists for prompt in prompts)
    return {prompt: place for place, prompt in enumerate(different)}


def prompt_batch(
    source: PromptSource, step: int, batch_size: int, group_size: int = 1
) -> list[str]:
    """Returns the global batch of a step.

    Args:
      source: the source that prompts come from.
      step: the training step, 0 or more.
      batch_size: how many prompts the batch has, repeats counted.
      group_size: how many times in a row each prompt is repeated.

    Returns:
      `batch_size` prompts, in which a prompt's repeats are neighbours.

    Raises:
      UserError: `group_size` does not divide `batch_size`.
    """
    if group_size < 1 or batch_size < 1 or batch_size % group_size:
        fitting = max(group_size, 1) * max(1, round(batch_size / max(group_size, 1)))
        raise UserError(
            f"A batch of {batch_size} cannot hold whole groups of {group_size}: make the batch"
            f" {fitting}, or the groups a divisor of {batch_size}."
        )
    groups = batch_size // group_size
    prompts = (source[step * groups + group] for group in range(groups))
    return [prompt for prompt in prompts for _ in range(group_size)]
