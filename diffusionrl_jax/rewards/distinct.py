"""Does what a reward does with prompts once for each of them, however many pictures it has."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

Prepare = Callable[..., dict[str, np.ndarray]]


def once_per_prompt(prepare: Prepare) -> Prepare:
    """Decorates a `prepare` whose row of a prompt depends on nothing but that prompt.

    It is then called with distinct prompts, in the order in which they come first, and its rows are
    repeated for those that come again. A batch has `group_size` times as many prompts as distinct
    ones.

    Args:
      prepare: a method of (self, prompts) that returns arrays of len(prompts) rows.

    Returns:
      The method with the same results.
    """

    @functools.wraps(prepare)
    def of_distinct(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        place = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        rows = np.array([place[prompt] for prompt in prompts], np.intp)
        return {field: array[rows] for field, array in prepare(self, list(place)).items()}

    return of_distinct
