"""The word lists of the paper, against the numbers that it states."""

import re

import pytest

from diffusionrl_jax import assets
from diffusionrl_jax.data.prompt_sources import open_prompts
from tests.data.test_prompt_files import listed


def test_objects_of_the_paper():
    train, test = open_prompts("objects:train", 0), open_prompts("objects:test", 0)
    assert len(train.prompts) == 450 * 449 * 5
    assert len(test.prompts) == 82 * 81 * 5
    assert len(open_prompts("objects:all", 0).prompts) == 532 * 531 * 5
    said = {}
    for split, source in (("train", train), ("test", test)):
        # One relation of every 13th pair, in which all objects are first and second.
        alike = [source.prompts[n] for n in range(0, len(source.prompts), 5 * 13)]
        pairs = {re.fullmatch("an? (.+) and an? (.+)", prompt).groups() for prompt in alike}
        assert len(pairs) == len(alike)
        assert all(first != second for first, second in pairs)
        said[split] = {first for first, _ in pairs}
        assert said[split] == {second for _, second in pairs}
    assert {split: len(objects) for split, objects in said.items()} == {"train": 450, "test": 82}
    every = assets.resolve("asset:words/objects.txt").read_text().splitlines()
    assert said["train"] | said["test"] == set(every)
    of_first_pair = [test.prompts[n].split(" ", 2)[2] for n in range(5)]
    assert len(set(of_first_pair)) == 5
    with pytest.raises(ValueError, match="use objects:train, objects:test or objects:all"):
        open_prompts("objects:valid", 0)


def test_occupations_of_the_paper():
    every, train, test = (open_prompts(f"occupations:{s}", 0) for s in ("all", "train", "test"))
    assert len(listed(every)) == 100
    assert len(listed(test)) == 20
    assert sorted(listed(train) + listed(test)) == sorted(listed(every))
    assert "a portrait of an accountant" in listed(every)
