"""clip_score against transformers with random weights."""

import jax
import numpy as np
import pytest

from diffusionrl_jax.rewards import REWARDS


def test_scores_match_pytorch(assert_scores_match_pytorch):
    assert_scores_match_pytorch("clip_score")


@pytest.mark.parametrize(
    "reward",
    [
        "hps_v2",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("clip_score", "pick_score")),
    ],
)
def test_prompts_of_a_group_are_embedded_once(reward, make_original):
    _, folder = make_original(reward)
    each, params = REWARDS[reward].load(str(folder))
    grouped, _ = REWARDS[reward].load(str(folder), group_size=4)
    images = np.random.default_rng(0).random((8, 32, 32, 3), dtype=np.float32)
    prompts = ["a fox"] * 4 + ["a cake"] * 4
    inputs = grouped.prepare(prompts)
    expected = jax.jit(each)(params, images, inputs)
    np.testing.assert_allclose(
        jax.jit(grouped)(params, images, inputs), expected, atol=1e-6 * np.abs(expected).max()
    )
    with pytest.raises(ValueError, match="groups of 4 times the same"):
        grouped.prepare(["a fox", "a cake"] * 4)
    with pytest.raises(ValueError, match="groups of 4"):
        grouped.prepare(["a fox"] * 6)
