"""hps_v2 against what open_clip itself gave: names and shapes, scores, token ids."""

import json

import jax
import numpy as np
import pytest
import safetensors.torch
import torch

from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.towers import clip
from diffusionrl_jax.rewards import REWARDS, hps_v2, preprocessing
from tests.rewards import open_clip_reference

# open_clip_reference.TINY in transformers' terms.
TINY = {
    "model_type": "clip",
    "projection_dim": 20,
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "hidden_act": "gelu",
    },
    "text_config": {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 600,
        "hidden_act": "gelu",
    },
}


@pytest.fixture(scope="module")
def reference():
    return json.loads(open_clip_reference.FILE.read_text())


def test_scores_match_pytorch(assert_scores_match_pytorch):
    assert_scores_match_pytorch("hps_v2")


def test_every_tensor_of_vit_h_14_has_its_place(reference):
    shapes = open_clip_reference.shapes(reference["published"])
    zero = np.zeros((), np.float32)
    state = {name: np.broadcast_to(zero, shape) for name, shape in shapes.items()}
    template = clip.template(clip.build(hps_v2.PUBLISHED))
    # Raises at a name or a shape that the one or the other lacks.
    matched = weights.match(
        clip.split_open_clip(state), template, rename=clip.open_clip_rename, ignore=()
    )
    sizes = sum(tensor.size for tensor in matched.values())
    assert sizes == sum(map(np.prod, shapes.values())) == 986_109_441


def test_scores_of_open_clips_model(reference, parity, tmp_path):
    parity.originals.common.write_clip_tokenizer(tmp_path, TINY["text_config"]["vocab_size"])
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    state = open_clip_reference.make_state(open_clip_reference.shapes(reference["tiny"]))
    weights.write_safetensors(tmp_path / "model.safetensors", state)
    reward, params = REWARDS["hps_v2"].load(str(tmp_path))
    pictures, input_ids = open_clip_reference.make_inputs()
    images = pictures.astype(np.float32) / 255
    scores = jax.jit(reward)(params, images, {"input_ids": input_ids})
    assert np.std(reference["scores"]) > 0.05
    np.testing.assert_allclose(scores, reference["scores"], atol=1e-6)


def test_token_ids_of_open_clips_tokenizer(reference, make_original):
    original, folder = make_original("hps_v2")
    tokens = reference["tokens"]
    # Words without any of these prompts' are there by number only.
    taken = set(tokens["vocabulary"].values())
    others = {f"<filler {number}>": number for number in range(49408) if number not in taken}
    (folder / "vocab.json").write_text(json.dumps(others | tokens["vocabulary"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *tokens["merges"], ""]))
    config = original.config["text_config"] | {"vocab_size": 49408}
    model = clip.build(original.config | {"text_config": config})
    reward = hps_v2.HpsV2(model, hps_v2.checkpoint.read_clip_tokenizer(folder, 49408))
    assert tokens["prompts"] == list(open_clip_reference.PROMPTS)
    rows = reward.prepare(tokens["prompts"])["input_ids"]
    assert rows.shape == (len(tokens["ids"]), 77)
    for prompt, row, expected in zip(tokens["prompts"], rows, tokens["ids"], strict=True):
        assert row[: len(expected)].tolist() == expected, prompt


def test_scores_are_differentiable_as_the_originals(make_original):
    original, folder = make_original("hps_v2")
    reward, params = REWARDS["hps_v2"].load(str(folder))
    image = np.random.default_rng(0).random((1, 32, 32, 3), dtype=np.float32)
    inputs = reward.prepare(["a cake"])
    gradient = jax.jit(jax.grad(lambda image: reward(params, image, inputs).sum()))(image)
    pixels = torch.tensor(image.transpose(0, 3, 1, 2), requires_grad=True)
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (preprocessing.CLIP_MEAN, preprocessing.CLIP_STD)
    )
    encoded = original.tokenizer(["a cake"], return_tensors="pt")
    outputs = original.model(**encoded, pixel_values=(pixels - mean) / std)
    (outputs.image_embeds * outputs.text_embeds).sum().backward()
    expected = pixels.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gradient, expected, atol=1e-6 + 1e-4 * np.abs(expected).max())


def test_a_tensor_that_does_not_fit_is_named(make_original):
    _, folder = make_original("hps_v2")
    file = folder / "model.safetensors"
    state = safetensors.torch.load_file(file)
    state["visual.proj"] = state["visual.proj"][:, :-1].contiguous()
    safetensors.torch.save_file(state, file)
    with pytest.raises(ValueError, match="visual.proj.* has shape"):
        REWARDS["hps_v2"].load(str(folder))
