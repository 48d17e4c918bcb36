"""Scorers and tasks are opened as they were described."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, emoji
from diffusionrl_jax.experiments.tasks import add_tasks, make_scorer, make_task, make_weighted_sum
from diffusionrl_jax.rewards.scorers import load_scorer
from tests.algorithms import toy

BRIGHTNESS = make_scorer("tests.algorithms.toy:Brightness")
REDNESS = make_scorer("tests.experiments.test_tasks:Redness", channel=0)


@dataclasses.dataclass(frozen=True)
class Redness(toy.Brightness):
    """Of one channel alone."""

    channel: int = 2

    def __call__(self, params, images, inputs):
        return images[..., self.channel].mean((1, 2))


def test_a_task_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="no task 'speed': choose from preference"):
        emoji.get_config("speed")


def test_tasks_are_added_by_their_names():
    known = {
        name: make_task(BRIGHTNESS, f"emoji:{name}") for name in ("pairs", "portraits", "singles")
    }
    config = common.get_config()
    add_tasks(config, known, "singles,pairs")
    assert {name: task.prompts for name, task in config.tasks.items()} == {
        "pairs": "emoji:pairs",
        "singles": "emoji:singles",
    }


def test_a_sum_is_that_of_its_parts_times_their_weights():
    reward, params = load_scorer(make_weighted_sum(seen=(BRIGHTNESS, -2), red=(REDNESS, 0.5)), 4)
    images = np.random.default_rng(0).random((8, 4, 4, 3), np.float32)
    expected = 0.5 * images[..., 0].mean((1, 2)) - 2 * images.mean((1, 2, 3))
    np.testing.assert_allclose(reward(params, jnp.asarray(images), {}), expected, rtol=1e-5)


def test_a_normalised_sum_is_one_of_z_scores():
    """Of a prompt's images; sums of earlier runs have no such option."""
    plain = make_weighted_sum(seen=(BRIGHTNESS, 3))
    assert "normalised" not in plain.options
    reward, params = load_scorer(make_weighted_sum(normalised=True, seen=(BRIGHTNESS, 3)), 4)
    images = np.random.default_rng(0).random((8, 1, 1, 3), np.float32)
    groups = images.mean((1, 2, 3)).reshape(2, 4)
    scores = (groups - groups.mean(1, keepdims=True)) / groups.std(1, keepdims=True)
    # 1e-4 is added to deviations of about 0.2.
    np.testing.assert_allclose(reward(params, images, {}), 3 * scores.ravel(), rtol=3e-3)
