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


def test_which_rewards_give_a_prompts_pictures_one_score():
    """By themselves, and where they are parts of normalised sums."""
    shared = [common.make_scorer(f"{name}_parity") for name in ("statistical", "recognised")]
    credit = common.make_scorer("statistical_parity", credit="leave_one_out")
    names = ["statistical_parity", "recognised_parity"]
    parts = dict(zip("abcd", (*shared, credit, common.make_scorer("jpeg_size")), strict=True))
    parts = {name: (part, 1.0) for name, part in parts.items()}
    plain, normalised = (common.make_weighted_sum(normalised=is_so, **parts) for is_so in (0, 1))
    assert scorers.sharing(plain) == scorers.sharing(normalised) == names
    assert scorers.sharing(plain, normalised=False) == scorers.sharing(credit) == []
    outer = common.make_weighted_sum(a=(normalised, 1.0), b=(shared[1], 1.0))
    assert scorers.sharing(outer, normalised=False) == names
