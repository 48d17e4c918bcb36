"""Parity against closed forms; the classifiers against transformers' CLIPVisionModel, CLIPModel."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs import common
from diffusionrl_jax.rewards import scorers, statistical_parity


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


def test_probabilities_match_transformers(parity):
    config = parity.originals.tiny("statistical_parity")
    result = parity.compare("statistical_parity", config, ((64, 64), (53, 80), (25, 20)))
    assert result["spread"] > 0.05
    assert result["difference"] < 1e-6
    assert result["difference_in_8_bits"] < 0.1 * result["spread"]


def test_reward_groups_contiguous_pictures(make_original, parity):
    original, folder = make_original("statistical_parity")
    shared, params = statistical_parity.StatisticalParity.load(str(folder), group_size=4)
    pictures = parity.make_pictures(((32, 32),) * 8)
    images = np.stack(pictures).astype(np.float32) / 255
    groups = [original.score(pictures[i : i + 4], (), eight_bits=False) for i in (0, 4)]
    scores = jax.jit(shared)(params, images, shared.prepare([""] * 8))
    np.testing.assert_allclose(scores, np.concatenate(groups), atol=1e-6)
    with pytest.raises(ValueError, match="groups of 4"):
        shared(params, images[:6], {})


TONES = {"pale": "pale skin", "tan": "tan skin", "dark": "a person with dark skin"}


@torch.no_grad()
def zero_shot(original, prompts, pictures):
    """transformers' logits_per_image, [pictures, prompts]."""
    pixels = torch.stack(list(map(original.pixels, pictures)))
    encoded = original.tokenizer(list(prompts), padding=True, return_tensors="pt")
    return original.model(**encoded, pixel_values=pixels).logits_per_image.numpy()


def test_a_head_of_prompts_is_clips_zero_shot_classifier(make_original, parity):
    original, folder = make_original("clip_score")
    scorer = common.make_scorer("statistical_parity", str(folder))
    reward, params = scorers.load_scorer(scorer, 4)
    assert reward.classes == tuple(statistical_parity.CLASS_PROMPTS)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), reward.template())
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
    texts = list(statistical_parity.CLASS_PROMPTS.values())
    # With an odd margin where the centre is cut out.
    pictures = parity.make_pictures(((20, 17),) * 8)
    images = np.stack(pictures).astype(np.float32) / 255

    @jax.jit
    def run(params, images):
        return reward.logits(params, images), reward(params, images, {})

    logits, scores = run(params, images)
    expected = zero_shot(original, texts, pictures)
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    for group in (slice(0, 4), slice(4, 8)):
        counts = np.bincount(expected[group].argmax(-1), minlength=len(texts))
        distance = np.linalg.norm(counts / 4 - 1 / len(texts))
        np.testing.assert_allclose(scores[group], -distance, atol=1e-6)


def test_prompts_are_of_the_options_or_else_of_the_folder(make_original):
    _, folder = make_original("clip_score")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"class_prompts": TONES}))
    others = {"a": "one person", "b": "two people"}
    for options, expected in (({}, TONES), ({"class_prompts": others}, others)):
        scorer = common.make_scorer("statistical_parity", str(folder), **options)
        reward, params = scorers.load_scorer(scorer, 4)
        assert reward.class_prompts == expected
        assert sorted(reward.classes) == sorted(expected)
        assert params["classifier"]["kernel"].shape == (20, len(expected))


def test_a_head_of_prompts_refuses_what_it_cannot_be_made_of(make_original):
    _, folder = make_original("clip_score")
    load = statistical_parity.StatisticalParity.load
    for prompts in ({"dark": "dark skin"}, ["dark", "light"], {"dark": "", "light": "light"}):
        with pytest.raises(ValueError, match="class_prompts=.* two or more classes a prompt each"):
            load(str(folder), class_prompts=prompts)
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="neither a trained head .* nor a text tower"):
        load(str(folder))
    _, trained = make_original("statistical_parity")
    with pytest.raises(ValueError, match="has a trained head .* leave class_prompts out"):
        load(str(trained), class_prompts=TONES)


def test_errors_name_the_thing(make_original):
    _, folder = make_original("statistical_parity")
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
