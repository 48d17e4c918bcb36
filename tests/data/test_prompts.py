import collections
import itertools

import pytest

from diffusionrl_jax.data import prompts


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        *[(noun, "a") for noun in ("judge", "house", "unicorn", "university professor", "uniform")],
        *[(noun, "a") for noun in ("helicopter", "European city", "UFO", "ukulele", "utensil")],
        *[
            (noun, "a")
            for noun in ("one-way street", "ewe", "TV presenter", "PR person", "used car")
        ],
        *[
            (noun, "an")
            for noun in ("apple", "umbrella", "honest man", "hourglass", "heir", "usher")
        ],
        *[(noun, "an") for noun in ("MRI scan", "X-ray", "unimpressed cat", "old house", "SUV")],
    ],
)
def test_article_follows_the_first_sound(noun, expected):
    assert prompts.article(noun) == expected


def test_template_prompts():
    source = prompts.TemplatePrompts("a portrait of {article} {noun}", ("judge", "artist"), 0)
    assert sorted(source[i] for i in range(2)) == [
        "a portrait of a judge",
        "a portrait of an artist",
    ]
    with pytest.raises(ValueError, match="lacks {noun}"):
        prompts.TemplatePrompts("a portrait", ("judge",), 0)
    for template in ("a {colour} {noun}", "a {noun.x}", "a {noun[x]}", "a {} {noun}", "a {noun"):
        with pytest.raises(ValueError, match="Cannot fill"):
            prompts.TemplatePrompts(template, ("judge",), 0)
    with pytest.raises(ValueError, match="no prompt"):
        prompts.TemplatePrompts("a {noun}", (), 0)


def test_pair_prompts_cover_all_ordered_pairs_of_different_objects():
    objects, relations = ("apple", "bus", "cat"), ("and", "next to")
    source = prompts.PairPrompts(objects, relations, seed=1)
    drawn = [source[i] for i in range(12)]
    expected = {
        f"{'an' if a == 'apple' else 'a'} {a} {r} {'an' if b == 'apple' else 'a'} {b}"
        for a in objects
        for b in objects
        for r in relations
        if a != b
    }
    assert set(drawn) == expected
    assert len(expected) == 12


def test_pair_prompts_leave_excluded_pairs_out():
    objects = ("apple", "bus", "cat")
    either_way = prompts.PairPrompts(objects, ("and",), 0, exclude=[("cat", "apple")])
    assert len(either_way.prompts) == 4
    assert not any("apple" in p and "cat" in p for p in either_way.prompts)
    one_way = prompts.PairPrompts(objects, ("and",), 0, exclude=lambda a, b: a > b)
    assert sorted(one_way.prompts) == [
        "a bus and a cat",
        "an apple and a bus",
        "an apple and a cat",
    ]
    with pytest.raises(ValueError, match="All pairs of the 3 objects are excluded"):
        prompts.PairPrompts(objects, ("and",), 0, exclude=lambda a, b: True)
    with pytest.raises(ValueError, match="at least 2 objects"):
        prompts.PairPrompts(("apple",), ("and",), 0)


def test_a_million_pairs_need_no_listing():
    source = prompts.PairPrompts([f"thing {n}" for n in range(450)], ["and"] * 5, seed=0)
    assert len(source.prompts) == 450 * 449 * 5
    assert source[10**9].count("thing") == 2


def test_mixture_keeps_proportions_and_leaves_nothing_out():
    words = prompts.TemplatePrompts("{noun}", tuple("abcdef"), 0)
    numbers = prompts.TemplatePrompts("{noun}", tuple("12"), 0)
    mixture = prompts.MixturePrompts((words, numbers), (3, 1))
    drawn = [mixture[i] for i in range(80)]
    assert [p for p in drawn if p.isalpha()] == [words[i] for i in range(60)]
    assert [p for p in drawn if p.isdigit()] == [numbers[i] for i in range(20)]
    counts = collections.Counter(p.isalpha() for p in drawn[:8])
    assert counts == {True: 6, False: 2}
    with pytest.raises(ValueError, match="one positive weight"):
        prompts.MixturePrompts((words, numbers), (1, 0))


def test_prompt_places_number_different_prompts_once():
    cats, dogs = (prompts.ShuffledPrompts(list(words), seed=0) for words in ("abc", "cd"))
    mixture = prompts.MixturePrompts([cats, dogs], (1, 2))
    assert list(prompts.first_prompts(mixture, 5)) == [*"abc", *"cd"]
    assert list(prompts.first_prompts(mixture, 4)) == [mixture[n] for n in range(4)]
    assert list(prompts.first_prompts(range(9), 4)) == [0, 1, 2, 3]
    assert prompts.prompt_places(cats, 3) == {"a": 0, "b": 1, "c": 2}
    assert prompts.prompt_places(mixture, 5) == {"a": 0, "b": 1, "c": 2, "d": 3}
    with pytest.raises(ValueError, match="There are 5, more than 4"):
        prompts.prompt_places(mixture, 4)
    with pytest.raises(ValueError, match="cannot be listed"):
        prompts.prompt_places(itertools.count(), 4)


def test_prompt_batch_repeats_each_prompt_contiguously():
    source = prompts.TemplatePrompts("{noun}", tuple("abcdefgh"), 0)
    batch = prompts.prompt_batch(source, step=1, batch_size=6, group_size=2)
    assert batch == [p for i in (3, 4, 5) for p in [source[i]] * 2]
    with pytest.raises(ValueError, match="batch of 7 .*groups of 4.*batch 8"):
        prompts.prompt_batch(source, 0, 7, 4)
