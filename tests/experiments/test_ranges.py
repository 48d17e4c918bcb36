"""Each kind of value takes what it says that it takes, and nothing else."""

import math

import ml_collections
import numpy as np
import pytest

from diffusionrl_jax.experiments.ranges import (
    Choice,
    Made,
    Number,
    Optional,
    Several,
    Switch,
    Text,
    Whole,
)

COUNT = Whole(2, 8, "is all")
MAPPING = ml_collections.ConfigDict({"a": 2, "b": 8})
NO_NUMBERS = (math.nan, math.inf, -math.inf, "3", None, True, (3,), 3j)


@pytest.mark.parametrize(
    ("kind", "taken", "refused", "words"),
    [
        (
            Number(0.5, 2),
            (0.5, 2, 1, np.float32(1.5), np.int64(2)),
            (0, 0.4999, 2.0001, *NO_NUMBERS),
            "a number from 0.5 to 2",
        ),
        (
            Number(1e-3, 4, "is none"),
            (0, 0.0, 0.001, 4),
            (-1e-9, 5e-4, *NO_NUMBERS),
            "a number from 0.001 to 4, or 0, which is none",
        ),
        # What 0 means need not be said again where it is within the bounds.
        (Number(-1, 1, "is none"), (-1, 0), (1.5,), "a number from -1 to 1"),
        (
            COUNT,
            (0, 2, 8, np.int32(5)),
            (1, 9, -2, 2.0, 2**70, *NO_NUMBERS),
            "a whole number from 2 to 8, or 0, which is all",
        ),
        (Choice(("a", "b")), ("a", "b"), ("", "c", "ab", 0, None, ["a"]), "one of a, b"),
        (Text(), ("a", " "), ("", 1, None, b"a"), "a text that is not empty"),
        (Text(may_be_empty=True), ("", "a"), (0, None), "a text"),
        (Switch(), (True, False), (0, 1, "True", None), "True or False"),
        (
            Several(COUNT),
            ((), [2, 8], (0,)),
            ((1,), (2, "2"), 2, "22", {2: 2}, None, MAPPING),
            "a tuple or list, each a whole number from 2 to 8, or 0, which is all",
        ),
        (
            Several(Text(), least=2, most=2),
            (("a", "b"),),
            (("a",), ("a", "b", "c"), "ab"),
            "a tuple or list of 2, each a text that is not empty",
        ),
        (
            Several(COUNT, least=1, by_name=True),
            (MAPPING, {"a": 0}),
            ({}, {"a": 1}, (2,), None),
            "a mapping of 1 or more, each a whole number from 2 to 8, or 0, which is all",
        ),
        (Made("make_task"), (MAPPING, {}), (3, "a", None, ()), "made with make_task"),
        (
            Optional(Text()),
            (None, "a"),
            ("", 1),
            "None, or a text that is not empty",
        ),
    ],
    ids=str,
)
def test_what_a_kind_takes(kind, taken, refused, words):
    assert [value for value in taken if not kind.takes(value)] == []
    assert [value for value in refused if kind.takes(value)] == []
    assert str(kind) == words
