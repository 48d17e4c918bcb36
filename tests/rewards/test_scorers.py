"""What is made of a config's scorers."""

import pytest

from configs import common
from diffusionrl_jax.rewards import JpegSize, detection, scorers
from diffusionrl_jax.rewards.scorers import is_of_ones_own
from diffusionrl_jax.rewards.weighted_sum import WeightedSum

OBJECTS = ("dog", "hot dog", "cat", "cake")


def test_every_prompt_can_be_checked_beforehand():
    reward = detection.Detection(model=None, objects=OBJECTS)
    good = ["a cat"] * (2 * scorers.PROMPTS_PER_CHECK)
    mixed = WeightedSum({"objects": reward, "size": JpegSize()}, {"objects": 1.0, "size": 1.0})
    for checked in (reward, mixed, JpegSize()):
        scorers.check_prompts(checked, iter(good))
    scorers.check_prompts(JpegSize(), ["a fox"])
    for checked in (reward, mixed, WeightedSum({"inner": mixed}, {"inner": 1.0})):
        with pytest.raises(ValueError, match="'a fox' names none of the 4 objects"):
            scorers.check_prompts(checked, [*good, "a fox"])


def test_whose_a_reward_is():
    own = common.make_scorer("my.module:Reward")
    assert is_of_ones_own(own)
    assert is_of_ones_own(common.make_weighted_sum(a=(own, 1.0)))
    assert not is_of_ones_own(common.make_scorer("host_reward", "my.module:function"))
