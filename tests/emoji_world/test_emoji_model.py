"""The tokenizer and the configs, against transformers' tokenizer and PyTorch's networks."""

import diffusers
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffusionrl_jax import assets
from diffusionrl_jax.emoji_world import emoji_model
from diffusionrl_jax.models.folders import tensor_files
from diffusionrl_jax.models.folders.networks import NETWORKS, STEMS
from diffusionrl_jax.models.text_encoders import tokenize

FOLDER = assets.resolve("asset:emoji/stable_diffusion")


@pytest.fixture(scope="module")
def tokenizer():
    return emoji_model.train_tokenizer()


def test_the_tokenizer_reads_as_transformers_own_does(tokenizer, tmp_path):
    """The one in Python, of the same files; upper case and words that no prompt has as well."""
    tokenizer.save_pretrained(tmp_path)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    texts = [*emoji_model.world_prompts()[::7], "A Fox", "a quixotic kraken!", "", "apple " * 30]
    options = {"padding": "max_length", "truncation": True, "return_tensors": "np"}
    expected = theirs(texts, max_length=emoji_model.TOKENS, **options).input_ids
    np.testing.assert_array_equal(tokenize(tokenizer, texts), expected)


def test_every_prompt_of_the_world_is_read_whole(tokenizer):
    ids = tokenizer(emoji_model.world_prompts()).input_ids
    lengths = [len(tokens) for tokens in ids]
    assert max(lengths) < emoji_model.TOKENS
    assert {tokens[-1] for tokens in ids} == {tokenizer.eos_token_id}
    # The markers are the last two, as CLIP's are.
    assert tokenizer.bos_token_id == len(tokenizer) - 2
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == len(tokenizer) - 1


def test_the_shipped_weights_are_of_these_networks(tokenizer):
    """Name by name and shape by shape, as PyTorch builds them from the configs."""
    configs = emoji_model.configs(tokenizer, scaling_factor=0.5)
    assert configs["vae"]["scaling_factor"] == 0.5
    with torch.device("meta"):
        networks = {
            "unet": diffusers.UNet2DConditionModel(**configs["unet"]),
            "vae": diffusers.AutoencoderKL(**configs["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
        }
    assert networks.keys() == set(NETWORKS)
    stored = tensor_files.open_networks({FOLDER / name: STEMS[name] for name in NETWORKS})
    for name, network in networks.items():
        expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        expected.pop("text_model.embeddings.position_ids", None)
        found = {key: tuple(tensor.shape) for key, tensor in stored[name].items()}
        assert found == expected
