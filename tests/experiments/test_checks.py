"""What is said of a task's prompts before a run."""

import contextlib
import types

import numpy as np
import pytest

from configs import common
from diffusionrl_jax.algorithms import ALGORITHMS
from diffusionrl_jax.data.prompts import ShuffledPrompts
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.experiments import checks
from diffusionrl_jax.rewards.jpeg_size import JpegSize

MODEL = types.SimpleNamespace(are_cut=lambda prompts: np.array([len(p) > 4 for p in prompts], bool))
CONFIG = types.SimpleNamespace(
    iterations=1,
    batch_size=2,
    tasks={"small": types.SimpleNamespace(prompts="p.txt", group_size=1)},
)


def said(prompts, caplog):
    caplog.clear()
    caplog.set_level("WARNING", logger="absl")
    reward, _ = JpegSize.load("")
    checks.check_task_prompts("small", CONFIG, ShuffledPrompts(prompts, 0), reward, MODEL)
    return [record.getMessage() for record in caplog.records]


def test_prompts_that_are_cut_are_said_once(caplog, monkeypatch):
    assert said(["four", "cat"], caplog) == []
    (message,) = said(["four", "five5", "cat", "sixsix"], caplog)
    assert message.startswith("config.tasks.small.prompts='p.txt': 2 of 4 prompts are longer than")
    assert message.endswith("the first is 'five5'.")
    monkeypatch.setattr(checks, "MOST_COUNTED", 50)
    (message,) = said([f"prompt {n}" for n in range(100)], caplog)
    assert ": 50 of 50 prompts are longer" in message


def test_a_window_is_for_what_trains_on_steps(make_config):
    config = make_config(**{"algorithm.name": "nft", "sampler.window": 2})
    with pytest.raises(ValueError, match="window=2 is for the method policy_gradient"):
        checks.check_experiment(config, make_mesh())
    config.sampler.window = 0
    checks.check_experiment(config, make_mesh())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_training_what_guidance_makes_is_warned_of(name, make_config, caplog):
    """Where a method was published for training without."""
    config = make_config(**{"algorithm.name": name, "sampler.guidance_scale": 1.0})
    checks.warn_of_guidance(config)
    assert not caplog.text
    config.sampler.guidance_scale = 7.0
    checks.warn_of_guidance(config)
    published_without = name in ("refl", "nft", "awm", "dgpo", "crd", "dpo")
    assert ("published for training without" in caplog.text) == published_without


def test_a_normalised_sum_is_refused_as_a_judge(make_config):
    """Its mean over a prompt's pictures is 0 for any model."""
    config, size = make_config(), common.make_scorer("jpeg_size")
    inner = common.make_weighted_sum(normalised=True, a=(size, 1.0))
    for scorer, is_refused in (
        (inner, True),
        (common.make_weighted_sum(b=(inner, 1.0)), True),
        (common.make_weighted_sum(b=(size, 1.0)), False),
    ):
        config.evaluation.scorers.size = scorer
        expected = pytest.raises(ValueError, match="scorers.size is a normalised sum")
        with expected if is_refused else contextlib.nullcontext():
            checks.check_evaluation(config, make_mesh())


PARITY = common.make_scorer("statistical_parity", "asset:emoji/statistical_parity")
COLOURS = common.make_scorer("colour_parity")
CREDIT = common.make_scorer("statistical_parity", "asset:x", credit="leave_one_out")
SIZE = common.make_scorer("jpeg_size")
SUM = common.make_weighted_sum(size=(SIZE, 1.0), parity=(PARITY, 1.0))
NORMALISED = common.make_weighted_sum(normalised=True, size=(SIZE, 1.0), parity=(PARITY, 1.0))
OF_CREDIT = common.make_weighted_sum(normalised=True, size=(SIZE, 1.0), parity=(CREDIT, 1.0))
BEST = {"algorithm.reward_weighted.weighting": "best"}


@pytest.mark.parametrize(
    ("scorer", "method", "normalisation", "changes", "refusal"),
    [
        (PARITY, "policy_gradient", "group", {}, "normalisation='group' compares .* by statis"),
        (PARITY, "nft", "group_mean", {}, "one score by statistical_parity, .*set credit='leave_"),
        (COLOURS, "awm", "win_rate", {}, "from it: set config.tasks.small.normalisation='batch'"),
        (SUM, "nft", "group", {}, "set credit='leave_one_out' in its make_scorer, or set config"),
        (NORMALISED, "nft", "batch", {}, "The normalised sum .*, or leave its normalised out"),
        (NORMALISED, "reward_weighted", "batch", {}, "The normalised sum"),
        (PARITY, "raft", "batch", {}, "The method raft compares"),
        (PARITY, "reward_weighted", "batch", BEST, "The method reward_weighted compares"),
        (PARITY, "dgpo", "batch", {}, "set config.tasks.small.algorithm to another one"),
        (PARITY, "crd", "batch", {}, "The method crd compares"),
        (COLOURS, "dpo", "batch", {}, "from it: set config.tasks.small.algorithm"),
        (PARITY, "policy_gradient", "batch", {}, ""),
        (PARITY, "policy_gradient", "prompt", {}, ""),
        (PARITY, "nft", "batch", BEST, ""),
        (PARITY, "reward_weighted", "group", {}, ""),
        (CREDIT, "dgpo", "group", {}, ""),
        (OF_CREDIT, "nft", "group", {}, ""),
        (SUM, "nft", "batch", {}, ""),
        (PARITY, "dpo_offline", "group", {"algorithm.dpo_offline.pairs": "x"}, ""),
    ],
)
def test_one_score_for_all_images_of_a_prompt_is_not_compared_within_it(
    scorer, method, normalisation, changes, refusal, make_config
):
    config = make_config(**{"algorithm.name": method, **changes})
    config.tasks.small = common.make_task(scorer, "emoji:portraits", 2, normalisation=normalisation)
    expected = pytest.raises(ValueError, match=refusal) if refusal else contextlib.nullcontext()
    with expected:
        checks.check_experiment(config, make_mesh())


def test_tasks_that_do_not_learn_may_be_scored_so(make_config):
    config = make_config()
    config.tasks.watched = common.make_task(
        PARITY, "emoji:portraits", 2, weight=0.0, normalisation="group"
    )
    checks.check_experiment(config, make_mesh())
