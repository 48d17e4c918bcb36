"""Detection against transformers' OwlViTForObjectDetection with random weights."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from diffusionrl_jax.rewards import detection

OBJECTS = ["dog", "hot dog", "cat", "cake"]
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
TEXT = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 8,
}


def write_tokenizer(folder):
    """CLIP's byte pairs without merges: letters, and letters that end a word."""
    letters = "acdeghkoft"
    tokens = ["!", *letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nd o\nc a\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detection")
    torch.manual_seed(0)
    model = transformers.OwlViTForObjectDetection(
        transformers.OwlViTConfig(vision_config=VISION, text_config=TEXT, projection_dim=24)
    ).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    model.save_pretrained(folder)
    config = {
        "vision_config": VISION,
        "text_config": TEXT,
        "objects": OBJECTS,
        "query_template": "{}",
    }
    (folder / "oracle").mkdir()
    model.save_pretrained(folder / "oracle")
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return detection.Detection.load(str(folder), exclusive=False)


def test_confidences_match_transformers(folder, loaded):
    reward, params = loaded
    oracle = transformers.OwlViTForObjectDetection.from_pretrained(folder / "oracle").eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    images = np.random.default_rng(0).random((3, 16, 16, 3), dtype=np.float32)
    prompts = ["a cat next to a hot dog", "a cake", "a dog and a cake"]
    named = [["cat", "hot dog"], ["cake", "cake"], ["dog", "cake"]]
    inputs = reward.prepare(prompts)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.tensor(((images - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)
    encoded = tokenizer(
        [name for pair in named for name in pair],
        padding="max_length",
        max_length=8,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = oracle(
            input_ids=encoded["input_ids"] * encoded["attention_mask"],
            attention_mask=encoded["attention_mask"],
            pixel_values=pixels,
        ).logits
    expected = logits.sigmoid().amax(1).numpy()
    confidences = reward.confidences(params, images, inputs)
    np.testing.assert_allclose(
        np.where(inputs["mask"], confidences, 0), np.where(inputs["mask"], expected, 0), atol=1e-5
    )
    score = jax.jit(reward)(params, images, inputs)
    np.testing.assert_allclose(
        score, (expected * inputs["mask"]).sum(1) / inputs["mask"].sum(1), atol=1e-5
    )


def test_exclusive_patches_count_once(folder, loaded):
    everything, params = loaded
    exclusive, _ = detection.Detection.load(str(folder))
    images = np.random.default_rng(1).random((4, 16, 16, 3), dtype=np.float32)
    inputs = everything.prepare(["a cat and a dog"] * 4)
    free = np.asarray(everything.confidences(params, images, inputs))
    bound = np.asarray(exclusive.confidences(params, images, inputs))
    assert (bound <= free + 1e-6).all()
    # The better of the two objects keeps its best patch.
    np.testing.assert_allclose(bound.max(1), free.max(1), atol=1e-6)


def test_the_longest_name_wins_and_words_are_whole(loaded):
    reward, _ = loaded
    assert reward.find_objects("A hot dog beside a cat") == (1, 2)
    assert reward.find_objects("a dog, a dog and a cake") == (0, 3)
    assert reward.find_objects("a dogma") == ()


def test_prompts_without_objects_or_with_too_many_are_refused(loaded):
    reward, _ = loaded
    with pytest.raises(ValueError, match="a portrait of a judge"):
        reward.prepare(["a cat", "a portrait of a judge"])
    with pytest.raises(ValueError, match="names 3 objects"):
        reward.prepare(["a cat, a dog and a cake"])


def test_published_sizes():
    """google/owlvit-base-patch32: what its config leaves out is transformers' OwlViT default."""
    model = detection.owl_vit.build({"vision_config": {}, "text_config": {}})
    oracle = transformers.OwlViTConfig()
    for tower, config in ((model.vision, oracle.vision_config), (model.text, oracle.text_config)):
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "layer_norm_eps",
            "hidden_act",
        ):
            assert getattr(tower.config, name) == getattr(config, name), name
    assert model.vision.config.image_size == oracle.vision_config.image_size
    assert model.text.config.vocab_size == oracle.text_config.vocab_size
