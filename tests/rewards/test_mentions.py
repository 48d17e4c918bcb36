"""Names in prompts, against a search that tries every place and every name."""

import random

import pytest

from diffusionrl_jax.rewards.mentions import find_names

NAMES = ("dog", "hot dog", "Cat", "cake", "ice cream", "c++", "a.b")


def search(prompt, names):
    """From the left, the longest name that begins there, between no letters: its index, once."""
    prompt, found, place = prompt.lower(), [], 0
    is_letter = lambda index: (
        0 <= index < len(prompt) and (prompt[index].isalnum() or prompt[index] == "_")
    )
    while place < len(prompt):
        fitting = [
            name.lower()
            for name in names
            if prompt.startswith(name.lower(), place)
            and not is_letter(place - 1)
            and not is_letter(place + len(name))
        ]
        longest = max(fitting, key=len, default="")
        if longest:
            found.append([name.lower() for name in names].index(longest))
        place += len(longest) or 1
    return tuple(dict.fromkeys(found))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a hot dog and a DOG", (1, 0)),
        ("dogma, catalogue, hot dogs", ()),
        ("a cat, a cat and cake", (2, 3)),
        ("learning c++, and axb", (5,)),
        ("", ()),
    ],
)
def test_the_longest_whole_name_counts_once(prompt, expected):
    assert find_names(prompt, NAMES) == search(prompt, NAMES) == expected


def test_random_prompts():
    rng = random.Random(0)
    pieces = [*NAMES, " ", " ", "s", "hot", "_", ", ", "ice ", "é"]
    for _ in range(500):
        prompt = "".join(rng.choices(pieces, k=8))
        assert find_names(prompt, NAMES) == search(prompt, NAMES), prompt
