"""Folders with files that lack or hold something wrong: one line with the file and the field."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from etils import epath
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from diffusionrl_jax import assets
from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models import schedulers
from diffusionrl_jax.models.families import describe_model, family_of
from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.folders.networks import RENAMES
from diffusionrl_jax.models.stable_diffusion import supported
from diffusionrl_jax.models.stable_diffusion.build import build_stable_diffusion
from diffusionrl_jax.models.stable_diffusion.configs import read_configs, read_tokenizers
from diffusionrl_jax.models.stable_diffusion.folder import load_stable_diffusion

EMOJI = assets.resolve("asset:emoji/stable_diffusion")
UNET, VAE, TEXT = (f"{name}/config.json" for name in ("unet", "vae", "text_encoder"))
SCHEDULER = "scheduler/scheduler_config.json"
TOKENIZER = "tokenizer/tokenizer_config.json"

FIELDS = [
    (UNET, {"layers_per_block": [1]}, r"layers_per_block is \[1\], and must be a whole number"),
    (UNET, {"layers_per_block": 0}, "layers_per_block is 0, and must be"),
    (UNET, {"layers_per_block": "2"}, "layers_per_block is '2', and must be"),
    (UNET, {"block_out_channels": [64]}, "block_out_channels .*different lengths|attention_head"),
    (UNET, {"block_out_channels": []}, r"block_out_channels is \[\], and must be a list"),
    (UNET, {"block_out_channels": 64}, "block_out_channels is 64, and must be a list"),
    (UNET, {"block_out_channels": [64, 0]}, r"block_out_channels is \[64, 0\], and must be"),
    (UNET, {"attention_head_dim": 0}, "attention_head_dim is 0, and must be a whole number"),
    (UNET, {"attention_head_dim": [4, 0]}, r"attention_head_dim is \[4, 0\], and must be"),
    (UNET, {"attention_head_dim": [4]}, "attention_head_dim .* does not divide"),
    (UNET, {"attention_head_dim": "x"}, "attention_head_dim is 'x', and must be"),
    (UNET, {"down_block_types": []}, r"down_block_types is \[\], and must be a list of texts"),
    (UNET, {"down_block_types": "DownBlock2D"}, "down_block_types is 'DownBlock2D', and must"),
    (UNET, {"up_block_types": [1, 2]}, r"up_block_types is \[1, 2\], and must be a list"),
    (UNET, {"up_block_types": ["UpBlock2D"]}, "up_block_types and block_out.*different lengths"),
    (UNET, {"sample_size": 0}, "sample_size is 0, and must be a whole number"),
    (UNET, {"sample_size": 8.5}, "sample_size is 8.5, and must be a whole number"),
    (UNET, {"sample_size": [8, 8]}, r"sample_size is \[8, 8\], and must be a whole number"),
    (UNET, {"sample_size": None}, "sample_size missing"),
    (UNET, {"cross_attention_dim": [64, 64]}, "cross_attention_dim is .*, and must be"),
    (UNET, {"in_channels": 0}, "in_channels is 0, and must be"),
    (UNET, {"transformer_layers_per_block": "x"}, "transformer_layers_per_block is x"),
    (UNET, {"transformer_layers_per_block": [True, 1]}, "transformer_layers_per_block is"),
    (UNET, {"norm_num_groups": 0}, "norm_num_groups is 0, but only 32"),
    (UNET, {"flip_sin_to_cos": "no"}, "flip_sin_to_cos is 'no', and must be true or false"),
    (VAE, {"scaling_factor": 0}, "scaling_factor is 0, and must be a finite number above 0"),
    (VAE, {"scaling_factor": "x"}, "scaling_factor is 'x', and must be a finite number above 0"),
    (VAE, {"scaling_factor": float("nan")}, "scaling_factor is nan, and must be a finite"),
    (VAE, {"norm_num_groups": 0}, "norm_num_groups is 0, and must be"),
    (VAE, {"layers_per_block": -1}, "layers_per_block is -1, and must be"),
    (VAE, {"block_out_channels": [16, 32]}, "different lengths"),
    (VAE, {"latent_channels": None, "in_channels": 1}, "in_channels is 1, but only 3"),
    (TEXT, {"num_attention_heads": 0}, "num_attention_heads is 0, and must be"),
    (TEXT, {"num_attention_heads": 5}, "num_attention_heads is 5, which does not divide"),
    (TEXT, {"hidden_size": "64"}, "hidden_size is '64', and must be"),
    (TEXT, {"num_hidden_layers": 0}, "num_hidden_layers is 0, and must be"),
    (TEXT, {"layer_norm_eps": 0}, "layer_norm_eps is 0, and must be"),
    (TEXT, {"vocab_size": []}, r"vocab_size is \[\], and must be"),
    (SCHEDULER, {"beta_start": "small"}, "beta_start is 'small', and must be a number above 0"),
    (SCHEDULER, {"beta_end": 0}, "beta_end is 0, and must be"),
    (SCHEDULER, {"beta_schedule": 1}, "beta_schedule 1 is not one of linear, scaled_linear"),
    (SCHEDULER, {"num_train_timesteps": 0}, "num_train_timesteps is 0, and must be"),
    (SCHEDULER, {"num_train_timesteps": 10.5}, "num_train_timesteps is 10.5, and must be"),
    (SCHEDULER, {"timestep_spacing": ["x"]}, "timestep_spacing .* is not one of leading"),
    (SCHEDULER, {"prediction_type": "flow"}, "prediction_type 'flow' is not one of"),
    (SCHEDULER, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is for prediction_type"),
    (SCHEDULER, {"thresholding": True}, "thresholding True is not supported"),
    (TOKENIZER, {"model_max_length": 0}, "model_max_length is 0, and must be a whole number of 2"),
    (TOKENIZER, {"model_max_length": "16"}, "model_max_length is '16', and must be"),
    (TOKENIZER, {"pad_token": 5}, "pad_token is 5, and must be a text, or an object"),
    (TOKENIZER, {"added_tokens_decoder": {"a": "b"}}, "added_tokens_decoder is .*, and must be"),
    ("tokenizer/special_tokens_map.json", {"bos_token": ["x"]}, "bos_token is .*, and must be"),
    (TOKENIZER, {"model_max_length": 17}, "pads to 17 tokens, but .* 16 positions"),
]


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(EMOJI, tmp_path / "model")
    return tmp_path / "model"


def change(file, fields):
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(("name", "fields", "words"), FIELDS)
def test_a_wrong_field_is_told_by_its_file(folder, name, fields, words):
    change(folder / name, fields)
    with pytest.raises(UserError, match=words) as error:
        load_stable_diffusion(folder)
    assert "\n" not in str(error.value)
    # What is said of two files together names the part.
    assert str(folder / name) in str(error.value) or "positions" in str(error.value)


@pytest.mark.parametrize("name", [UNET, VAE, TEXT, SCHEDULER])
def test_a_plan_says_the_same(folder, name):
    fields = next(fields for file, fields, _ in FIELDS if file == name)
    change(folder / name, fields)
    with pytest.raises(UserError, match=name):
        describe_model(str(folder))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *itertools.product(
            (UNET, VAE, TEXT, SCHEDULER, TOKENIZER, "tokenizer/vocab.json", "model_index.json"),
            ("[]", "1", '{"a": ', "\xff"),
        ),
        *((name, "{}") for name in (UNET, SCHEDULER, "tokenizer/vocab.json")),
    ],
)
def test_files_that_hold_nothing(folder, name, text):
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as error:
        load_stable_diffusion(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("vae", "AutoencoderTiny"),
        ("vae", "ConsistencyDecoderVAE"),
        ("unet", "UNet2DModel"),
        ("unet", "UNetMotionModel"),
        ("text_encoder", "T5EncoderModel"),
    ],
)
def test_other_classes_are_refused_by_name(folder, part, name):
    index = json.loads((folder / "model_index.json").read_text())
    change(folder / "model_index.json", {part: [index[part][0], name]})
    words = f"model_index.json: the {part} is of class {name}, which is not supported: use a model"
    with pytest.raises(UserError, match=words):
        load_stable_diffusion(folder)
    change(folder / "model_index.json", index)
    change(folder / part / "config.json", {"_class_name": name})
    with pytest.raises(UserError, match=f"{part}/config.json: the {part} is of class {name}"):
        load_stable_diffusion(folder)


def test_a_second_text_encoder_that_the_pipeline_does_not_name_is_passed_over(folder):
    _, expected = load_stable_diffusion(folder)
    (folder / "text_encoder_2").mkdir()
    (folder / "text_encoder_2" / "config.json").write_text("not read")
    model, params = load_stable_diffusion(folder)
    assert model.text_encoder_2 is None
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def assert_as_pytorch(params, folder):
    """The weights are those that PyTorch's pipeline has read."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    for name in ("unet", "vae", "text_encoder"):
        theirs = getattr(pipeline, name).state_dict()
        for key, value in weights.to_pytorch(params[name], rename=RENAMES[name]).items():
            np.testing.assert_array_equal(value, theirs[key].float().numpy())


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_one_file_beside_shards(folder, part, tmp_path):
    """diffusers reads the shards, transformers the file."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).to(
        torch.float32
    )
    pipeline.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    shutil.rmtree(folder)
    pipeline.save_pretrained(folder)
    (single,) = (folder / part).glob("*.safetensors")
    state = load_file(single)
    state = {name: tensor + 0.1 for name, tensor in state.items()}
    save_file(state, single, metadata={"format": "pt"})
    shards = [file for file in (tmp_path / "shards" / part).iterdir() if file.name != "config.json"]
    assert len(shards) > 2
    for file in shards:
        shutil.copy(file, folder / part)
    _, params = load_stable_diffusion(folder)
    assert_as_pytorch(params, folder)


def test_a_text_encoder_with_the_other_towers(folder):
    """Weights and config of a whole CLIP model."""
    _, expected = load_stable_diffusion(folder)
    text = json.loads((folder / TEXT).read_text())
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    vision = small | {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    fields = {name: value for name, value in text.items() if name not in ("architectures", "dtype")}
    whole = CLIPModel(CLIPConfig(text_config=fields, vision_config=vision, projection_dim=4))
    state = load_file(folder / "text_encoder" / "model.safetensors")
    whole.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    whole.save_pretrained(folder / "text_encoder")
    saved = load_file(folder / "text_encoder" / "model.safetensors")
    assert {"logit_scale", "text_projection.weight", "visual_projection.weight"} < set(saved)
    _, params = load_stable_diffusion(folder)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert_as_pytorch(params, folder)


def test_tensors_of_nothing_that_is_known_are_still_refused(folder):
    file = folder / "text_encoder" / "model.safetensors"
    save_file(load_file(file) | {"text_model.more": torch.ones(1)}, file)
    with pytest.raises(UserError, match="text_encoder has tensors the model does not know"):
        load_stable_diffusion(folder)


WRONG = [0, -1, 5, "x", "", [], {}, [1], [0, 0], [64, "x"], [[1], [2]], {"a": 1}, True, 1.5, 10**12]


@pytest.mark.slow
@pytest.mark.parametrize("name", [UNET, VAE, TEXT, SCHEDULER, "model_index.json"])
def test_no_value_of_any_field_ends_in_a_traceback(tmp_path, name):
    """Of what the shipped folder says and of all that is looked at: read, or refused in a line."""
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        (tmp_path / part).mkdir()
        for file in (EMOJI / part).glob("*.json"):
            shutil.copy(file, tmp_path / part)
    fields = json.loads((EMOJI / name).read_text())
    (tmp_path / "model_index.json").write_bytes((EMOJI / "model_index.json").read_bytes())
    tokenizers = read_tokenizers(EMOJI, {})
    looked_at = {
        UNET: [*supported.UNET_KINDS, *supported.UNET_FIELDS, "transformer_layers_per_block"],
        VAE: [*supported.VAE_KINDS, *supported.VAE_FIELDS],
        TEXT: [*supported.TEXT_KINDS, *supported.TEXT_FIELDS],
        SCHEDULER: [*schedulers.KINDS, *schedulers.CHOICES, *schedulers.REFUSED],
    }
    refused = 0
    for field, value in itertools.product({*fields, *looked_at.get(name, ())}, WRONG):
        (tmp_path / name).write_text(json.dumps({**fields, field: value}))
        try:
            family_of(epath.Path(tmp_path))
            configs = read_configs(epath.Path(tmp_path))
            build_stable_diffusion(configs, **tokenizers)
            make_process(configs["scheduler"], 50)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > len(WRONG)
