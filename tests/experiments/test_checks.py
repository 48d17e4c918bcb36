"""What is said of a task's prompts before a run."""

import contextlib
import types

import numpy as np
import pytest

from configs import common
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


@pytest.mark.parametrize("name", ["nft", "crd", "policy_gradient", "dpo_offline"])
def test_training_what_guidance_makes_is_warned_of(name, make_config, caplog):
    """Where a method was published for training without."""
    config = make_config(**{"algorithm.name": name, "sampler.guidance_scale": 1.0})
    checks.warn_of_guidance(config)
    assert not caplog.text
    config.sampler.guidance_scale = 7.0
    checks.warn_of_guidance(config)
    assert ("published for training without" in caplog.text) == (name in ("nft", "crd"))


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
