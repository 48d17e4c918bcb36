"""ImageReward against transformers' PyTorch BLIP with random weights, under the published keys."""

import numpy as np
import pytest
import safetensors.torch

from diffusionrl_jax.rewards import image_reward

PROMPTS = ["an apple near a cake", "a cake"]


def test_score_matches_transformers_blip(parity):
    config = parity.originals.tiny("image_reward")
    result = parity.compare("image_reward", config, ((64, 64), (53, 80), (25, 20)))
    assert result["spread"] > 0.05
    assert result["difference"] < 1e-5
    assert result["difference_in_8_bits"] < 0.1 * result["spread"]


def test_published_sizes():
    """ImageReward-v1.0's shapes, from its model card and code, without allocating them."""
    reward = image_reward.ImageReward.from_config({}, tokenizer=None)
    template = reward.template()
    assert template["vision"]["embeddings"]["position_embeddings"].shape == (1, 197, 1024)
    assert len(template["vision"]["encoder"]["layer"]) == 24
    layer = template["text"]["encoder"]["layer"]["11"]
    assert layer["crossattention"]["self"]["key"]["kernel"].shape == (1024, 768)
    embedding = template["text"]["embeddings"]["word_embeddings"]["embedding"]
    assert embedding.shape == (30524, 768)
    assert sorted(template["mlp"]) == [f"layers_{i}" for i in (0, 2, 4, 6, 7)]
    assert template["mlp"]["layers_7"]["kernel"].shape == (16, 1)


@pytest.mark.slow
def test_larger_pictures_are_resized_and_cropped(make_original):
    _, folder = make_original("image_reward")
    reward, params = image_reward.ImageReward.load(str(folder))
    images = np.full((2, 80, 128, 3), 0.5, np.float32)
    small = np.full((2, 32, 32, 3), 0.5, np.float32)
    inputs = reward.prepare(PROMPTS)
    assert inputs["input_ids"].shape == (2, 35)
    expected = reward(params, small, inputs)
    np.testing.assert_allclose(reward(params, images, inputs), expected, atol=1e-5)


def test_a_missing_tensor_is_named(make_original):
    _, folder = make_original("image_reward")
    file = folder / "model.safetensors"
    state = safetensors.torch.load_file(file)
    state.pop("mlp.layers.0.bias")
    safetensors.torch.save_file(state, file)
    with pytest.raises(ValueError, match="mlp.layers.0.bias"):
        image_reward.ImageReward.load(str(folder))
