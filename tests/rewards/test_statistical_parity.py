"""Parity against closed forms; the classifier against transformers' CLIPVisionModel."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from diffusionrl_jax.rewards import statistical_parity

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
CLASSES = ("light", "medium", "dark")


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model, torch.nn.Linear(VISION["hidden_size"], len(CLASSES))


@pytest.fixture
def folder(tower, tmp_path):
    model, head = tower
    state = {**model.state_dict(), **{f"classifier.{k}": v for k, v in head.state_dict().items()}}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    config = {"vision_config": VISION, "classes": CLASSES}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_parity_of_equal_and_of_one_class():
    equal, single = jnp.array([[0, 1, 2, 3]]), jnp.array([[2, 2, 2, 2]])
    parity = statistical_parity.statistical_parity
    np.testing.assert_allclose(parity(equal, 4), [0], atol=1e-7)
    np.testing.assert_allclose(parity(single, 4), [math.sqrt(1 - 1 / 4)], rtol=1e-6)
    one_hot = jnp.eye(4)[equal]
    np.testing.assert_allclose(parity(one_hot), parity(equal, 4))


def test_leave_one_out_is_the_change_of_parity():
    groups = np.random.default_rng(0).integers(0, 5, (6, 8))

    def parity(classes):
        frequencies = np.bincount(classes, minlength=5) / len(classes)
        return np.linalg.norm(frequencies - 1 / 5)

    expected = [[parity(np.delete(group, i)) - parity(group) for i in range(8)] for group in groups]
    credit = statistical_parity.leave_one_out_credit(jnp.asarray(groups), 5)
    np.testing.assert_allclose(credit, expected, atol=1e-6)


def test_the_rare_class_earns_and_the_common_one_pays():
    credit = statistical_parity.leave_one_out_credit(jnp.array([[0, 0, 0, 0, 0, 0, 0, 1]]), 2)
    assert (credit[0, :-1] < 0).all() and credit[0, -1] > 0


def test_logits_match_transformers(tower, folder):
    model, head = tower
    reward, params = statistical_parity.StatisticalParity.load(str(folder))
    images = np.random.default_rng(1).random((4, 16, 16, 3), dtype=np.float32)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.tensor(((images - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.no_grad():
        expected = head(model(pixels).pooler_output)
    np.testing.assert_allclose(reward.logits(params, images), expected, atol=1e-5)
    probabilities = reward.classify(params, images)
    np.testing.assert_allclose(probabilities, expected.softmax(-1), atol=1e-5)


def test_reward_groups_contiguous_pictures(folder):
    shared, params = statistical_parity.StatisticalParity.load(str(folder), group_size=4)
    images = np.random.default_rng(2).random((8, 16, 16, 3), dtype=np.float32)
    classes = np.argmax(shared.logits(params, images), -1)
    expected = []
    for group in (classes[:4], classes[4:]):
        frequencies = np.bincount(group, minlength=3) / 4
        expected += [-np.linalg.norm(frequencies - 1 / 3)] * 4
    np.testing.assert_allclose(shared(params, images, {}), expected, atol=1e-6)
    with pytest.raises(ValueError, match="groups of 4"):
        shared(params, images[:6], {})


def test_errors_name_the_thing(folder):
    load = statistical_parity.StatisticalParity.load
    with pytest.raises(ValueError, match="leave_none_out"):
        load(str(folder), credit="leave_none_out")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "classes": ["light", "dark"]}))
    with pytest.raises(ValueError, match="classifier.weight"):
        load(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        load(str(folder))
