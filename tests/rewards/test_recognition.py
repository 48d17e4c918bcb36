"""Scores by the observer, against sums by hand of what it says."""

import numpy as np
import pytest

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.rewards.recognition import RecognisedParity, Recognition


class Observer:
    """Sees what it is given as parameters."""

    labels, tones = ("cat", "hot dog", "dog", "judge"), ("light", "dark")

    def recognise(self, params, images):
        return params["labels"], params["tones"]


def test_the_share_of_the_named_things_that_are_seen():
    reward = Recognition(Observer())
    prompts = ["a cat", "a cat and a dog", "a hot dog", "a portrait of a judge", "a dog and a cat"]
    inputs = reward.prepare(prompts)
    np.testing.assert_array_equal(inputs["mask"].sum(1), [1, 2, 1, 1, 2])
    seen = np.array([[0.9, 0.9, 0.1, 0.5], [0.4, 0.9, 0.7, 0.9], [0.9, 0.6, 0.9, 0.0]])
    params = {"labels": seen[[0, 1, 2, 0, 2]], "tones": None}
    np.testing.assert_allclose(reward(params, None, inputs), [1, 0.5, 1, 0, 1])


@pytest.mark.parametrize(
    ("prompt", "count"), [("a fox", 0), ("a cat, a dog and a judge", 3), ("dogs", 0)]
)
def test_prompts_that_cannot_be_told(prompt, count):
    reward = Recognition(Observer())
    for refuse in (reward.check, reward.prepare):
        with pytest.raises(UserError, match=f"'{prompt}' names {count} things"):
            refuse(["a cat", prompt])
    reward.check(["a cat", "a cat and a dog"])
    assert Recognition(Observer(), max_labels=3).prepare(["cat dog judge"])["labels"].shape == (
        1,
        3,
    )


def test_parity_is_minus_the_distance_from_equal_shares():
    """Eq. 12 of 2401.12244: the norm of the shares' differences from 1 / classes."""
    dark = np.array([1, 0, 1, 0, 1, 1, 1, 1])
    params = {"labels": None, "tones": np.stack([0.9 - 0.8 * dark, 0.1 + 0.8 * dark], 1)}
    scores = RecognisedParity(Observer(), group_size=4)(params, None, {})
    expected = [np.linalg.norm(np.array(share) - 0.5) for share in ([0.5, 0.5], [0, 1])]
    np.testing.assert_allclose(scores, -np.repeat(expected, 4), atol=1e-6)


def test_pictures_that_are_no_whole_groups_are_refused():
    params = {"labels": None, "tones": np.ones((6, 2))}
    with pytest.raises(UserError, match="6 pictures do not divide into groups of 4: make the ba"):
        RecognisedParity(Observer(), group_size=4)(params, None, {})


def test_the_shipped_observer_is_loaded():
    reward, params = RecognisedParity.load("asset:emoji/recogniser", group_size=2)
    assert reward.group_size == 2
    assert len(params["label_head"]["bias"]) == len(reward.recogniser.labels) > 0
    assert len(params["tone_head"]["bias"]) == len(reward.recogniser.tones) == 5
