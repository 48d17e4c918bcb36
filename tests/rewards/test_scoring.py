"""A reward of anybody's is tried on shapes alone, and what does not fit is named."""

import dataclasses
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from diffusionrl_jax.rewards import JpegSize, scoring
from diffusionrl_jax.rewards.scorers import load_scorer
from diffusionrl_jax.rewards.weighted_sum import WeightedSum

PROMPTS = ["an apple", "a cat"]


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
