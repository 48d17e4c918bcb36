"""What the emoji world's studies share: their checkpoints, flags, and what they read."""

import math

import emoji_runs
import pytest

from configs import emoji_policy_gradient
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.experiments import checks


@pytest.mark.parametrize("iterations", [1, 2, 7, 8, 24, 48, 50, 63, 192])
def test_a_run_is_judged_at_its_end_and_as_often_as_it_may(iterations):
    """Each checkpoint is one that a run saves: after every so many iterations, and the last."""
    steps = emoji_runs.steps_of(iterations)
    every = emoji_runs.overrides("raft", 1e-5, 0, iterations)["checkpoint.every"]
    assert steps == [n for n in range(1, iterations + 1) if n % every == 0 or n == iterations]
    # One more for each would be too many.
    assert len(steps) <= emoji_runs.EVALUATIONS
    assert every == 1 or math.ceil(iterations / (every - 1)) > emoji_runs.EVALUATIONS


@pytest.mark.parametrize("method", emoji_runs.METHODS)
def test_every_method_has_settings_that_fit(method):
    config = emoji_policy_gradient.get_config("compositionality")
    rate = emoji_runs.METHODS[method][1]
    config.update_from_flattened_dict(emoji_runs.overrides(method, rate, 0, 48))
    checks.check_experiment(config, make_mesh(1))


def test_an_evaluation_is_asked_for_as_one_would_type_it():
    checkpoints = {"nft": "runs/nft-0@48", "awm": "runs/awm-0@last"}
    asked = emoji_runs.evaluation_arguments(
        "out", checkpoints, {"portraits": 20}, {"evaluation.seed": 1}
    )
    assert asked == [
        "--config=configs/emoji_policy_gradient.py",
        "--checkpoints=nft=runs/nft-0@48,awm=runs/awm-0@last",
        "--output=out",
        "--config.evaluation.sets.portraits.images=20",
        "--config.evaluation.seed=1",
    ]


def test_pairs_without_an_interval_are_read(tmp_path):
    lines = ["model,against,set,scorer,value,low,high,images", "b,a,s,r,0.5,,,2"]
    (tmp_path / "head_to_head.csv").write_text("\n".join(lines))
    ((key, (value, low, high)),) = emoji_runs.read_pairs(str(tmp_path), "head_to_head.csv").items()
    assert key == ("b", "a", "s", "r") and value == 0.5
    assert math.isnan(low) and math.isnan(high)


def test_a_range_is_of_several_values():
    assert emoji_runs.mean_and_range([0.25]) == "0.250"
    assert emoji_runs.mean_and_range([40.0, 60.0, 80.0], 0) == "60 (40 to 80)"
