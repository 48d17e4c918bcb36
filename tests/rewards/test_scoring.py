"""A reward of anybody's is tried on shapes alone, what does not fit is named, and no broken picture
has a score."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from diffusionrl_jax.rewards import JpegSize, scoring
from diffusionrl_jax.rewards.colorimetry import ColourParity
from diffusionrl_jax.rewards.scorers import load_scorer
from diffusionrl_jax.rewards.weighted_sum import WeightedSum

PROMPTS = ["an apple", "a cat"]
GROUP = 4


@dataclasses.dataclass(frozen=True)
class Faulty:
    fault: str = ""

    def prepare(self, prompts):
        if self.fault == "leaves":
            sys.exit(0)
        if self.fault == "nothing":
            return None
        return {"rows": np.ones((3 if self.fault == "rows" else len(prompts),), np.float32)}

    def __call__(self, params, images, inputs):
        scores = images.mean((1, 2, 3)) * inputs["rows"]
        if self.fault == "column":
            return scores[:, None]
        if self.fault == "raises":
            return scores + jnp.zeros(7)
        if self.fault == "field":
            return inputs["columns"]
        return scores


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nothing", "Faulty.prepare gave a NoneType: it must give arrays by name"),
        ("rows", r"Faulty.prepare gave 'rows' of shape \(3,\) for 2 prompts"),
        ("leaves", "Faulty.prepare failed .SystemExit: 0.: mend .*test_scoring.py, line"),
        ("column", r"Faulty gave scores of shape \(2, 1\) for 2 images"),
        ("raises", "Faulty cannot score .*: mend .*test_scoring.py, line"),
        ("field", "Faulty cannot score .KeyError: 'columns'.: mend .*test_scoring.py"),
    ],
)
def test_what_does_not_fit_is_named(fault, message):
    with pytest.raises(ValueError, match=message):
        scoring.check_shapes(Faulty(fault), {}, (4, 4, 3), PROMPTS)


@pytest.mark.parametrize(
    "scorer",
    [
        common.make_scorer("jpeg_size"),
        common.make_scorer("host_reward", "tests.scorers:brightness"),
        common.make_weighted_sum(
            size=(common.make_scorer("jpeg_size"), 1.0),
            host=(common.make_scorer("host_reward", "tests.scorers:brightness"), 2.0),
        ),
    ],
)
def test_what_fits_passes(scorer):
    scoring.check_shapes(*load_scorer(scorer, 1), (16, 16, 3), PROMPTS)
    scoring.check_shapes(
        WeightedSum({"a": Faulty(), "b": JpegSize()}, {"a": 1.0, "b": 1.0}),
        {"a": {}, "b": {}},
        (16, 16, 3),
        PROMPTS,
    )


BROKEN = {1: np.nan, 5: np.inf, 6: -np.inf}


@dataclasses.dataclass(frozen=True)
class Blind:
    """Says the same of whatever it sees."""

    group_size: int = GROUP

    def __call__(self, params, images, inputs):
        return jnp.full(len(images), 0.5)


@dataclasses.dataclass(frozen=True)
class Lonely(Blind):
    compares_pictures = False


SINGLE = np.isin(np.arange(16), list(BROKEN))
BY_GROUP = np.isin(np.arange(16) // GROUP, [index // GROUP for index in BROKEN])


@pytest.mark.parametrize(
    ("reward", "lost"),
    [
        (JpegSize(), SINGLE),
        (Lonely(), SINGLE),
        (WeightedSum({"a": Lonely(), "b": Lonely()}, {"a": 1.0, "b": 2.0}), SINGLE),
        (Blind(), BY_GROUP),
        (ColourParity(group_size=GROUP), BY_GROUP),
        (WeightedSum({"a": Lonely(), "b": Blind()}, {"a": 1.0, "b": 2.0}), BY_GROUP),
    ],
    ids=["jpeg_size", "alone", "sum", "group", "colour_parity", "sum_with_group"],
)
def test_pictures_that_are_not_finite_have_no_score(reward, lost):
    """The others' scores are those of the reward by itself, to the bit."""
    params = {"a": {}, "b": {}} if isinstance(reward, WeightedSum) else {}
    images = np.random.default_rng(0).random((16, 16, 16, 3), np.float32)
    score = jax.jit(lambda images: scoring.score(reward, params, images, {}))
    expected = jax.jit(lambda images: reward(params, images, {}))(images)
    np.testing.assert_array_equal(score(images), expected)
    for index, number in BROKEN.items():
        images[index, 7, 3, index % 3] = number
    np.testing.assert_array_equal(score(images), np.where(lost, np.nan, expected))


def test_a_reward_that_is_no_number_an_image_is_named():
    @dataclasses.dataclass(frozen=True)
    class Column:
        def __call__(self, params, images, inputs):
            return images.mean((1, 2))[:, :1]

    with pytest.raises(ValueError, match=r"The reward Column gave scores of shape \(8, 1\) for 8"):
        scoring.score(Column(), {}, jnp.ones((8, 4, 4, 3)), {})
