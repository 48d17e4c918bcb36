"""What is in the emoji world, and what is held out."""

import itertools

import pytest

from diffusionrl_jax.data.emoji import pictures, vocabulary


def test_vocabulary_is_split_without_overlap():
    assert set(vocabulary.SEEN_OBJECTS) | set(vocabulary.HELD_OUT_OBJECTS) == set(
        vocabulary.OBJECTS
    )
    assert not set(vocabulary.SEEN_OBJECTS) & set(vocabulary.HELD_OUT_OBJECTS)
    assert set(vocabulary.HELD_OUT_OCCUPATIONS) < set(vocabulary.OCCUPATIONS)
    assert not set(vocabulary.SEEN_OCCUPATIONS) & set(vocabulary.HELD_OUT_OCCUPATIONS)
    assert sum(vocabulary.TONE_FREQUENCIES) == pytest.approx(1)


def test_one_pair_in_seven_is_held_out_either_way_round():
    pairs = list(itertools.combinations(vocabulary.SEEN_OBJECTS, 2))
    held_out = [vocabulary.is_held_out_pair(*pair) for pair in pairs]
    assert held_out == [vocabulary.is_held_out_pair(b, a) for a, b in pairs]
    assert sum(held_out) / len(pairs) == pytest.approx(1 / 7, abs=0.02)


def test_every_name_of_the_vocabulary_has_a_sprite():
    people = [f"{job}/{tone}" for job in vocabulary.OCCUPATIONS for tone in vocabulary.TONES]
    for name in [*vocabulary.OBJECTS, *people]:
        _, opacity = pictures.sprite(name, 16)
        assert opacity.max() > 0.9, name
