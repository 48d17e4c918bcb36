"""Real pictures of prompts, against the pictures that the prompts were made with."""

import numpy as np
import pytest

from diffusionrl_jax.data.emoji import real
from tests.data.emoji.test_pictures import examples


def test_real_pictures_follow_any_prompt_of_the_world():
    for example in examples(60):
        again = real.draw_prompt(np.random.default_rng(0), example.prompt)
        assert again.prompt == example.prompt
        assert (again.kind, again.objects, again.occupation) == (
            example.kind,
            example.objects,
            example.occupation,
        )


def test_real_portraits_have_uniform_tones():
    rngs = [np.random.default_rng((3, n)) for n in range(500)]
    tones = [real.draw_prompt(rng, "a portrait of a judge").tone for rng in rngs]
    # Chi-squared with 4 degrees of freedom: 18.5 is its 99.9th percentile.
    assert (np.square(np.bincount(tones, minlength=5) - 100) / 100).sum() < 18.5


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a dragon",
        "an apple near a dragon",
        "a dragon near nothing",
        "nothing near nothing",
        "a portrait of a dragon",
        "apple",
    ],
)
def test_other_prompts_have_no_real_picture(prompt):
    assert real.draw_prompt(np.random.default_rng(0), prompt) is None
    assert real.draw_prompts(["a cat", prompt], seed=0) is None


def test_real_pictures_are_stacked_in_order():
    drawn = real.draw_prompts(["a cat", "a portrait of an artist"], seed=5)
    assert drawn.shape == (2, 32, 32, 3)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[:1], real.draw_prompts(["a cat"], seed=5))
