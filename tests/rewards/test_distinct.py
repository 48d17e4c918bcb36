"""What is done once for each prompt gives the rows of what is done for each picture."""

import dataclasses

import numpy as np
import pytest

from diffusionrl_jax.rewards import REWARDS
from diffusionrl_jax.rewards.distinct import once_per_prompt
from diffusionrl_jax.rewards.weighted_sum import WeightedSum

GROUP = 3
PROMPTS = [text for text in ("an apple", "a cake", "an apple") for _ in range(GROUP)]


@dataclasses.dataclass(frozen=True)
class Lengths:
    asked: list

    @once_per_prompt
    def prepare(self, prompts):
        """How long each is."""
        self.asked.append(prompts)
        lengths = np.array([len(prompt) for prompt in prompts], np.int16)
        return {"length": lengths, "square": lengths[:, None] ** 2}


def test_distinct_prompts_are_asked_for_once_and_in_order():
    reward = Lengths([])
    inputs = reward.prepare(PROMPTS)
    assert reward.asked == [["an apple", "a cake"]]
    np.testing.assert_array_equal(inputs["length"], [8] * 3 + [6] * 3 + [8] * 3)
    np.testing.assert_array_equal(inputs["square"], inputs["length"][:, None] ** 2)
    assert inputs["length"].dtype == np.int16
    assert reward.prepare([])["length"].shape == (0,)
    assert Lengths.prepare.__doc__ == "How long each is."


@pytest.fixture
def reward(request, make_original):
    if request.param == "clip_score":
        return REWARDS["clip_score"].load(str(make_original("clip_score")[1]), group_size=GROUP)[0]
    folder = {"recognition": "recogniser"}.get(request.param, request.param)
    return REWARDS[request.param].load(f"asset:emoji/{folder}")[0]


@pytest.mark.parametrize(
    "reward", ["clip_score", "image_reward", "detection", "recognition"], indirect=True
)
def test_rewards_prepare_the_same_rows(reward):
    # A prompt by itself, in a group of its own, needs no rows of others.
    alone = {text: reward.prepare([text] * GROUP) for text in set(PROMPTS)}
    both = WeightedSum({"own": reward, "lengths": Lengths([])}, {"own": 1.0, "lengths": 1.0})
    for name, rows in reward.prepare(PROMPTS).items():
        expected = np.stack([alone[text][name][0] for text in PROMPTS])
        np.testing.assert_array_equal(rows, expected)
        assert rows.dtype == expected.dtype == np.int32 or name == "mask"
        np.testing.assert_array_equal(both.prepare(PROMPTS)[f"own/{name}"], expected)
