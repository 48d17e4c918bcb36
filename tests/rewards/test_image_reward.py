"""ImageReward against transformers' PyTorch BLIP with random weights, under the published keys."""

import json
import re

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from diffusionrl_jax.models import blip, weights
from diffusionrl_jax.rewards import image_reward

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
TEXT = {
    "vocab_size": 12,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "layer_norm_eps": 1e-12,
}
MLP_WIDTHS = (20, 8)
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "an", "apple", "cake", "a", "near"]
PROMPTS = ["an apple near a cake", "a cake", "an unknown apple"]
HF_TO_BLIP = (  # transformers' PyTorch BLIP names to those of BLIP's own code
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.self_attn\.qkv\.", ".attn.qkv."),
    (r"\.self_attn\.projection\.", ".attn.proj."),
)


def rename(name):
    for pattern, replacement in HF_TO_BLIP:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.fixture(scope="module")
def oracle():
    torch.manual_seed(0)
    vision = BlipVisionModel(
        transformers.BlipVisionConfig(**VISION, layer_norm_eps=1e-6, hidden_act="gelu")
    ).eval()
    text_config = transformers.BlipTextConfig(
        **TEXT, encoder_hidden_size=VISION["hidden_size"], is_decoder=True, hidden_act="gelu"
    )
    text = BlipTextModel(text_config, add_pooling_layer=False).eval()
    widths = (TEXT["hidden_size"], *MLP_WIDTHS, 1)
    layers = []
    for index, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        layers.append(torch.nn.Linear(inputs, outputs))
        if index < len(MLP_WIDTHS) - 1:
            layers.append(torch.nn.Dropout(0.2))
    mlp = torch.nn.Sequential(*layers).eval()
    for module in (vision, text, mlp):
        for parameter in module.parameters():
            parameter.data.normal_(std=0.2)
    return vision, text, mlp


@pytest.fixture
def folder(oracle, tmp_path):
    vision, text, mlp = oracle
    state = {f"blip.visual_encoder.{rename(k)}": v for k, v in vision.state_dict().items()}
    state |= {f"blip.text_encoder.{k}": v for k, v in text.state_dict().items()}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(16)[None]
    state["blip.vision_proj.weight"] = torch.zeros(4, 32)
    state |= {f"mlp.layers.{k}": v for k, v in mlp.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    config = {"vision_config": VISION, "text_config": TEXT, "mlp_widths": MLP_WIDTHS}
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_tokens": 9}))
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return tmp_path


def test_score_matches_transformers_blip(oracle, folder):
    vision, text, mlp = oracle
    reward, params = image_reward.ImageReward.load(str(folder))
    inputs = reward.prepare(PROMPTS)
    assert inputs["input_ids"].shape == (3, 9)
    images = np.random.default_rng(0).random((3, 16, 16, 3), dtype=np.float32)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.tensor(((images - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.no_grad():
        hidden = text(
            input_ids=torch.tensor(inputs["input_ids"]),
            attention_mask=torch.tensor(inputs["attention_mask"]),
            encoder_hidden_states=vision(pixels).last_hidden_state,
            is_decoder=False,
        ).last_hidden_state
        expected = (mlp(hidden[:, 0])[:, 0] - 0.16717362830052426) / 1.0333394966054072
    np.testing.assert_allclose(reward(params, images, inputs), expected, atol=1e-5, rtol=1e-5)


def test_names_and_layouts_round_trip(folder):
    _, params = image_reward.ImageReward.load(str(folder))
    state = blip.PROJECTIONS.join(weights.to_pytorch(params, rename=blip.rename))
    stored = weights.read_safetensors(folder / "model.safetensors")
    unused = {"blip.text_encoder.embeddings.position_ids", "blip.vision_proj.weight"}
    assert set(state) == set(stored) - unused
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor, stored[name], err_msg=name)


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


def test_larger_pictures_are_resized_and_cropped(folder):
    reward, params = image_reward.ImageReward.load(str(folder))
    images = np.full((2, 40, 64, 3), 0.5, np.float32)
    small = np.full((2, 16, 16, 3), 0.5, np.float32)
    inputs = reward.prepare(PROMPTS[:2])
    expected = reward(params, small, inputs)
    np.testing.assert_allclose(reward(params, images, inputs), expected, atol=1e-5)


def test_a_missing_tensor_is_named(folder):
    file = folder / "model.safetensors"
    state = safetensors.torch.load_file(file)
    state.pop("mlp.layers.0.bias")
    safetensors.torch.save_file(state, file)
    with pytest.raises(ValueError, match="mlp.layers.0.bias"):
        image_reward.ImageReward.load(str(folder))
