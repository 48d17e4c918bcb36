"""Does a reward's work on prompts once for each prompt, however many pictures it has."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

Prepare = Callable[..., dict[str, np.ndarray]]


def once_per_prompt(prepare: Prepare) -> Prepare:
    """Decorates a `prepare` whose row for a prompt depends on nothing but that prompt.

    It is then called with the distinct prompts, in the order in which they first appear, and its
    rows are repeated for prompts that come again. A batch has `group_size` times as many prompts as
    distinct ones.

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
