"""Finds the things that a prompt names."""

import functools
import re


def find_names(prompt: str, names: tuple[str, ...]) -> tuple[int, ...]:
    """Returns the indices of the names in a prompt, in its order, each once.

    Only whole words count, in either case, and the longest name wins ("hot dog" before "dog").
    """
    matches = _pattern(names).finditer(prompt.lower())
    return tuple(dict.fromkeys(_indices(names)[match[0]] for match in matches))


@functools.lru_cache
def _indices(names: tuple[str, ...]) -> dict[str, int]:
    return {name.lower(): index for index, name in enumerate(names)}


@functools.lru_cache
def _pattern(names: tuple[str, ...]) -> re.Pattern:
    longest_first = sorted((name.lower() for name in names), key=len, reverse=True)
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)")
