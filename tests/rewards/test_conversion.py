"""Files in the very key layout of the published pickles, at tiny sizes, become folders."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch

from diffusionrl_jax.assets import resolve
from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.rewards import REWARDS, conversion
from tests.data.test_files import full_disk

IMAGES = np.random.default_rng(0).random((2, 40, 48, 3), dtype=np.float32)
PROMPTS = ["an apple and a cake", "a cat"]


def scores(reward, folder):
    model, params = REWARDS[reward].load(str(folder))
    return np.asarray(jax.jit(model)(params, IMAGES, model.prepare(PROMPTS)))


def test_image_reward(tmp_path):
    folder = resolve("asset:emoji/image_reward")
    state = weights.read_safetensors(folder / "model.safetensors")
    tensors = {name: torch.tensor(value) for name, value in state.items()}
    tensors["blip.vision_proj.weight"] = torch.zeros(4, 8)
    tensors["blip.text_encoder.embeddings.position_ids"] = torch.arange(16)[None]
    source = tmp_path / "ImageReward.pt"
    torch.save(tensors, source)
    output = tmp_path / "converted"
    config = str(folder / "config.json")
    conversion.convert("image_reward", str(source), str(output), str(folder), config=config)
    np.testing.assert_array_equal(scores("image_reward", output), scores("image_reward", folder))


def test_aesthetic(make_original, tmp_path):
    original, folder = make_original("aesthetic")
    source, clip_folder = tmp_path / "sac+logos+ava1-l14-linearMSE.pth", tmp_path / "clip"
    torch.save(original.state(), source)
    original.model.save_pretrained(clip_folder)
    output = tmp_path / "converted"
    with pytest.raises(ValueError, match="name openai/clip-vit-large-patch14's folder with --clip"):
        conversion.convert("aesthetic", str(source), str(output))
    conversion.convert("aesthetic", str(source), str(output), clip=str(clip_folder))
    np.testing.assert_array_equal(scores("aesthetic", output), scores("aesthetic", folder))
    assert set(json.loads((output / "config.json").read_text())) == {
        "vision_config",
        "projection_dim",
    }


def rename(state):
    state["visual.projection"] = state.pop("visual.proj")


def cut(state):
    state["text_projection"] = state["text_projection"][:-1]


@pytest.mark.parametrize(("spoil", "named"), [(rename, "visual.proj"), (cut, "text_projection")])
def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_left(hps_v2, spoil, named):
    _, arguments = hps_v2
    state = torch.load(arguments["source"], weights_only=True)["state_dict"]
    spoil(state)
    torch.save({"state_dict": state}, arguments["source"])
    with pytest.raises(ValueError, match=rf"does not fit hps_v2: .*{named}"):
        conversion.convert(**arguments)
    output = resolve(arguments["output"])
    assert not list(output.parent.glob("converted*"))
    assert not list(output.parent.glob("*.partial"))


def test_pickles_that_hold_more_than_tensors_are_refused(hps_v2):
    _, arguments = hps_v2
    torch.save({"state_dict": {}, "optimizer": subprocess.Popen}, arguments["source"])
    with pytest.raises(ValueError, match="could run code and is refused"):
        conversion.convert(**arguments)
    torch.save([1, 2], arguments["source"])
    with pytest.raises(ValueError, match="holds no named tensors"):
        conversion.convert(**arguments)


def test_outputs_that_cannot_be_written(hps_v2, tmp_path):
    _, arguments = hps_v2
    with pytest.raises(OSError, match="--output=/proc/out cannot be written"):
        conversion.convert(**arguments | {"output": "/proc/out"})
    message = "Cannot write .*: what is there stays; make room, and the same command goes on"
    there = sorted(tmp_path.iterdir())
    with full_disk(5000), pytest.raises(OSError, match=message):
        conversion.convert(**arguments)
    assert sorted(tmp_path.iterdir()) == there


def test_what_is_missing_is_named(hps_v2, monkeypatch):
    _, arguments = hps_v2
    with pytest.raises(FileNotFoundError, match=r"vocab\.json and merges\.txt"):
        conversion.convert(**arguments | {"tokenizer": ""})
    with pytest.raises(FileNotFoundError, match="no_such.pt does not exist"):
        conversion.convert(**arguments | {"source": "no_such.pt"})
    with pytest.raises(ValueError, match="must be one of hps_v2, image_reward, aesthetic"):
        conversion.convert(**arguments | {"reward": "pick_score", "config": ""})
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="pip install torch"):
        conversion.convert(**arguments)
