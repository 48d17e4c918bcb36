"""Which judges of an evaluation are a reward of the run, too."""

from configs import common, emoji
from diffusionrl_jax.evaluation.judges import rewarded_by


def test_which_judges_are_never_a_reward():
    config = emoji.get_config()
    found = rewarded_by(config.tasks, config.evaluation.scorers)
    assert found == {
        "preference": ["preference"],
        "detection": ["compositionality"],
        "parity": ["fairness"],  # Whatever its credit is.
        "recognition": [],
        "independent_parity": [],
        "colour_parity": [],
    }
    assert rewarded_by(config.tasks.to_dict(), config.evaluation.scorers.to_dict()) == found


def test_another_name_of_the_same_model_is_no_other_judge():
    path = "google/owlv2-base-patch16-ensemble"
    task = common.make_task(common.make_scorer("detection", path), "objects:train")
    judges = {"objects": common.make_scorer("requested_objects", path)}
    assert rewarded_by({"t": task}, judges) == {"objects": ["t"]}


def test_a_part_of_a_sum_is_a_reward_too():
    size, other = common.make_scorer("jpeg_size", sign=1.0), common.make_scorer("aesthetic", "x")
    task = common.make_task(common.make_weighted_sum(a=(size, 1.0), b=(other, 2.0)), "emoji:pairs")
    judges = {"size": common.make_scorer("jpeg_size"), "aesthetic": common.make_scorer("aesthetic")}
    assert rewarded_by({"t": task}, judges) == {"size": ["t"], "aesthetic": []}
