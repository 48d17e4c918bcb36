"""A safety checker goes along with what is exported, as PyTorch opens it."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

from tests.runs.test_export import exported


@pytest.fixture
def guarded(tiny_model, tmp_path):
    """A base with a safety checker, of half precision and in shards, as PyTorch writes one."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_model, folder)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    vision = small | {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    text = small | {"num_attention_heads": 2, "vocab_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=4)
    checker = StableDiffusionSafetyChecker(config).half()
    # They are made as ones.
    for weight in (checker.concept_embeds, checker.special_care_embeds):
        torch.nn.init.normal_(weight)
    checker.save_pretrained(folder / "safety_checker", variant="fp16", max_shard_size="5KB")
    CLIPImageProcessor(crop_size=8, size=8).save_pretrained(folder / "feature_extractor")
    file = folder / "model_index.json"
    index = json.loads(file.read_text()) | {
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    }
    file.write_text(json.dumps(index))
    return folder, checker


def test_a_safety_checker_is_taken_along(guarded, tmp_path):
    base, checker = guarded
    pipeline = DiffusionPipeline.from_pretrained(exported(str(base), tmp_path / "whole"))
    state = pipeline.safety_checker.state_dict()
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {
        torch.float32
    }
    assert state.keys() == checker.state_dict().keys()
    for name, tensor in checker.state_dict().items():
        assert torch.equal(state[name], tensor.to(state[name].dtype))
    assert pipeline.config.requires_safety_checker
    assert pipeline.feature_extractor.to_dict() == CLIPImageProcessor(crop_size=8, size=8).to_dict()
    opened = StableDiffusionSafetyChecker.from_pretrained(
        tmp_path / "whole" / "safety_checker", torch_dtype="auto"
    )
    assert opened.dtype == torch.float32


def test_a_safety_checker_that_is_not_there_is_missed(guarded, tmp_path, caplog):
    base, _ = guarded
    for file in (base / "safety_checker").glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    pipeline = DiffusionPipeline.from_pretrained(exported(str(base), tmp_path / "whole"))
    assert "names a safety_checker, but there are no safetensors weights in" in caplog.text
    assert pipeline.safety_checker is None and pipeline.feature_extractor is not None
