"""clip_score, pick_score, hps_v2 and aesthetic against PyTorch with random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch

from diffusionrl_jax.rewards import REWARDS, preprocessing

NAMES = ("clip_score", "pick_score", "hps_v2", "aesthetic")
# Odd margins too, which the libraries round differently, and the model's own size.
SIZES = ((64, 64), (64, 96), (96, 64), (53, 80), (32, 32), (25, 38), (41, 65), (20, 17))


@pytest.mark.parametrize("reward", NAMES)
def test_scores_match_pytorch(reward, parity):
    result = parity.compare(reward, parity.originals.tiny(reward), SIZES)
    scale = 100 if reward == "pick_score" else 1
    assert result["spread"] > 1e-3 * scale
    assert result["difference"] < 1e-6 * scale
    # Pillow rounds twice to 1/255 of a channel's range, at most half a step each.
    assert result["difference_in_8_bits"] < 0.1 * result["spread"]


@pytest.mark.parametrize("reward", NAMES)
def test_preprocessing_is_within_pillows_rounding(reward, make_original, parity):
    original, _ = make_original(reward)
    ours = {
        "clip_score": preprocessing.square_of_transformers,
        "pick_score": preprocessing.square_of_transformers,
        "aesthetic": preprocessing.square,
        "hps_v2": preprocessing.padded,
    }[reward]
    for picture in parity.make_pictures(SIZES):
        pixels = np.asarray(ours(jnp.asarray(picture[None], jnp.float32) / 255, original.size))
        expected = original.pixels(picture).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(pixels[0], expected, atol=2e-5)
        # Half a step a pass, and the overshoot of the second pass's negative weights.
        in_8_bits = original.pixels(picture, eight_bits=True).permute(1, 2, 0).numpy()
        steps = np.abs(pixels[0] - in_8_bits) * np.array(preprocessing.CLIP_STD) * 255
        assert steps.max() < 1.25


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


def test_a_tensor_that_does_not_fit_is_named(make_original):
    _, folder = make_original("hps_v2")
    file = folder / "model.safetensors"
    state = safetensors.torch.load_file(file)
    state["visual.proj"] = state["visual.proj"][:, :-1].contiguous()
    safetensors.torch.save_file(state, file)
    with pytest.raises(ValueError, match="visual.proj.* has shape"):
        REWARDS["hps_v2"].load(str(folder))


def test_a_foreign_tokenizer_is_refused(make_original, parity):
    _, folder = make_original("clip_score")
    parity.originals.common.write_clip_tokenizer(folder, 700)
    with pytest.raises(ValueError, match="use the tokenizer that the model was published with"):
        REWARDS["clip_score"].load(str(folder))
    (folder / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks merges\.txt"):
        REWARDS["clip_score"].load(str(folder))


def test_config_json_of_the_published_folder_loads_as_it_is(make_original):
    original, folder = make_original("pick_score")
    expected, _ = REWARDS["pick_score"].load(str(folder))
    (folder / "config.json").write_text(original.model.config.to_json_string(use_diff=False))
    assert "architectures" in json.loads((folder / "config.json").read_text())
    reward, _ = REWARDS["pick_score"].load(str(folder))
    assert reward.model.vision.config.hidden_size == expected.model.vision.config.hidden_size
    assert reward.model.vision.config.hidden_act == expected.model.vision.config.hidden_act
