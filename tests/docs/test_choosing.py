"""The tables of docs/choosing.md against the code."""

import re

import pytest

from configs import common
from diffusionrl_jax.algorithms import ALGORITHMS
from diffusionrl_jax.rewards import REWARDS
from tests.processes import ROOT

PAGE = (ROOT / "docs" / "choosing.md").read_text()
# A gradient counts as three passes: a forward one, and a backward one that takes two.
GRADIENT = 3
# For the emoji world, and for evaluation.
OTHERS = {"recognition", "recognised_parity", "colour_parity", "requested_objects"}


def rows(header):
    """The cells of each row of the table whose header begins so, by its first cell's name."""
    lines = PAGE.split(f"\n| {header} |")[1].split("\n\n")[0].split("\n")[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {one[0].strip("`"): one[1:] for one in cells}


METHODS, REWARD_ROWS = rows("method"), rows("reward")


def test_every_method_is_there():
    assert METHODS.keys() == ALGORITHMS.keys()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_a_method_needs_and_costs(name):
    fields = common.get_config().algorithm[name]
    needs = ALGORITHMS[name].needs(fields)
    trajectory, gradient, groups, passes, held, _ = METHODS[name]
    assert bool(trajectory) == bool(needs.steps)
    assert bool(gradient) == needs.reward_gradient
    assert (groups == "2 or more") == (needs.groups or name == "raft")
    count = needs.updates * (GRADIENT + needs.predictions)
    factor = {"policy_gradient": needs.steps, "draft_k": needs.steps, "refl": 1}
    per_update = count // factor.get(name, needs.updates)
    expected = rf"S \+ {per_update}\b" if not needs.pairs else rf"{per_update} n\b"
    assert re.match(expected, passes), (name, per_update)
    assert ("base model" in held.replace("the base model with", "")) == needs.base
    assert ("an average" in held) == bool(needs.follower)


def test_rewards_and_their_gradients():
    assert REWARD_ROWS.keys() == REWARDS.keys() - OTHERS | {"weighted_sum"}
    for name, (_, _, gradient, *_) in REWARD_ROWS.items():
        if name != "weighted_sum":
            assert (gradient == "yes") == getattr(REWARDS[name], "has_gradient", True), name
