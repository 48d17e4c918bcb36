import numpy as np
import pytest

from diffusionrl_jax.data.emoji import prompt_sets, real, vocabulary
from diffusionrl_jax.rewards import mentions


def take(name, count=400, seed=0):
    source = prompt_sets.PROMPT_SETS[name](seed)
    return [source[index] for index in range(count)]


def things(prompts):
    known = tuple(vocabulary.OBJECTS)
    return [tuple(known[index] for index in mentions.find_names(text, known)) for text in prompts]


def people(prompts):
    return {text.split(maxsplit=4)[-1] for text in prompts}


@pytest.mark.parametrize(
    ("name", "held_out_objects", "held_out_pair"),
    [("pairs", False, False), ("new_pairs", False, True), ("unseen_pairs", True, None)],
)
def test_pairs_are_from_their_part_of_the_world(name, held_out_objects, held_out_pair):
    for first, second in things(take(name)):
        for noun in (first, second):
            assert (noun in vocabulary.HELD_OUT_OBJECTS) == held_out_objects
        if held_out_pair is not None:
            assert vocabulary.is_held_out_pair(first, second) == held_out_pair


def test_compositions_name_every_object_but_pair_only_those_that_may_be():
    named = things(take("compositions", 6000))
    assert {noun for nouns in named for noun in nouns} == set(vocabulary.OBJECTS)
    pairs = [nouns for nouns in named if len(nouns) == 2]
    assert len(pairs) == 4000
    assert not {noun for nouns in pairs for noun in nouns} & set(vocabulary.HELD_OUT_OBJECTS)


def test_portraits_of_training_and_test_are_of_different_people():
    assert people(take("portraits")) == set(vocabulary.SEEN_OCCUPATIONS)
    assert people(take("unseen_portraits")) == set(vocabulary.HELD_OUT_OCCUPATIONS)


def test_mixtures_keep_their_proportions_and_their_part():
    everything = take("everything", 400)
    rng = np.random.default_rng(0)
    kinds = [real.draw_prompt(rng, prompt).kind for prompt in everything]
    assert [kinds.count(kind) for kind in ("single", "pair", "portrait")] == [100, 200, 100]
    people_asked_for = [text for text in everything if text.startswith("a portrait")]
    assert not people(people_asked_for) & set(vocabulary.HELD_OUT_OCCUPATIONS)
    assert sum(text.startswith("a portrait") for text in take("everything_unseen")) == 100


@pytest.mark.parametrize("name", prompt_sets.PROMPT_SETS)
def test_every_set_depends_on_its_seed_and_can_be_drawn(name):
    assert take(name, 30) == take(name, 30)
    assert take(name, 30) != take(name, 30, seed=1)
    assert real.draw_prompts(take(name, 30), seed=0) is not None
