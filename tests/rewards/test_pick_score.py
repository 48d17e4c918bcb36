"""pick_score against transformers with random weights."""

import json

from diffusionrl_jax.rewards import REWARDS


def test_scores_match_pytorch(assert_scores_match_pytorch):
    assert_scores_match_pytorch("pick_score", scale=100)


def test_config_json_of_the_published_folder_loads_as_it_is(make_original):
    original, folder = make_original("pick_score")
    expected, _ = REWARDS["pick_score"].load(str(folder))
    (folder / "config.json").write_text(original.model.config.to_json_string(use_diff=False))
    assert "architectures" in json.loads((folder / "config.json").read_text())
    reward, _ = REWARDS["pick_score"].load(str(folder))
    assert reward.model.vision.config.hidden_size == expected.model.vision.config.hidden_size
    assert reward.model.vision.config.hidden_act == expected.model.vision.config.hidden_act
