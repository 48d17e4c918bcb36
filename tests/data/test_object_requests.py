"""Requests are read as they were made, and nothing else is."""

import collections

import pytest

from diffusionrl_jax.data import object_requests
from diffusionrl_jax.data.object_requests import Request, Thing, make_requests, read_request
from diffusionrl_jax.mistakes import UserError


@pytest.mark.parametrize(
    ("prompt", "request_"),
    [
        ("a photo of an apple", Request((Thing("apple"),))),
        ("a photo of a dog and a stop sign", Request((Thing("dog"), Thing("stop sign")))),
        ("a photo of three sheep", Request((Thing("sheep", count=3),))),
        ("a photo of two knives", Request((Thing("knife", count=2),))),
        ("a photo of an orange car", Request((Thing("car", "orange"),))),
        ("a photo of a cat left of a bus", Request((Thing("cat"), Thing("bus")), "left of")),
        (
            "a photo of a red cat and a blue bench",
            Request((Thing("cat", "red"), Thing("bench", "blue"))),
        ),
    ],
)
def test_what_prompts_ask_for(prompt, request_):
    assert read_request(prompt) == request_
    assert str(request_) == prompt


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat",
        "a photo of a unicorn",
        "a photo of two cat",
        "a photo of a cat, red",
        "",
        "a photo ",
    ],
)
def test_other_prompts_are_refused(prompt):
    with pytest.raises(UserError, match="is not one that asks for objects"):
        read_request(prompt)


def test_all_that_is_made_is_read():
    made = make_requests(40, seed=3)
    assert collections.Counter(made.values()) == dict.fromkeys(object_requests.TASKS, 40)
    for prompt, task in made.items():
        asked = read_request(prompt)
        assert str(asked) == prompt
        assert (len(asked.things) == 2) == (
            task in ("two objects", "position", "attribute binding")
        )
        assert bool(asked.relation) == (task == "position")
        assert (asked.things[0].count > 1) == (task == "counting")
        coloured = [thing.colour for thing in asked.things if thing.colour]
        assert len(coloured) == {"colours": 1, "attribute binding": 2}.get(task, 0)
        assert len({thing.noun for thing in asked.things}) == len(asked.things)


def test_prompts_are_a_function_of_the_seed():
    few, many = make_requests(5, 1), make_requests(20, 1)
    assert few.keys() <= many.keys()
    assert make_requests(20, 1) == many != make_requests(20, 2)
    with pytest.raises(UserError, match="each=0 must be from 1"):
        make_requests(0, 1)
    make_requests(len(object_requests.NOUNS), 0)
