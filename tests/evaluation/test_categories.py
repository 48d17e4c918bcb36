"""Means by category, against NumPy."""

import math

import numpy as np

from diffusionrl_jax.evaluation.categories import by_category

CATEGORIES = {
    "set": {
        "a": {"Kind": "x", "Place": "here"},
        "b": {"Kind": "y"},
        "c": {"Kind": "x", "Place": "there"},
        "d": {"Kind": "z"},
    },
    "plain": {},
}
PROMPTS = {"set": ["a", "a", "b", "c"], "plain": ["p"]}
SCORES = {
    name: {"set": {"s": np.array([0, 1, 2, 5]) + shift}, "plain": {"s": np.zeros(1)}}
    for name, shift in (("base", 0.0), ("ours", 0.5))
}


def test_each_category_has_its_mean():
    found = {
        (one.model, one.column, one.category): one
        for one in by_category(SCORES, PROMPTS, CATEGORIES)
    }
    values = {key[1:]: one.value for key, one in found.items() if key[0] == "base"}
    assert values == {
        ("Kind", "x"): 2.0,
        ("Kind", "y"): 2.0,
        ("Place", "here"): 0.5,
        ("Place", "there"): 5.0,
    }
    one = found["ours", "Kind", "x"]
    assert (one.value, one.images) == (2.5, 3)
    assert (one.low, one.high) == (1.0, 5.5), "one prompt has a mean of 1, the other of 5.5"
    assert math.isnan(found["base", "Kind", "y"].low)
