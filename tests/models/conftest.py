"""A tiny Stable Diffusion of each kind, with a tokenizer that knows single bytes."""

import json

import jax
import pytest
from transformers import CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

from diffusionrl_jax.models.stable_diffusion import init_stable_diffusion
from tests.schedulers import STABLE_DIFFUSION

TOKENS = 12
SCHEDULER = {"_class_name": "DDIMScheduler"} | STABLE_DIFFUSION
UNET = {
    "act_fn": "silu",
    "attention_head_dim": 4,
    "block_out_channels": [32, 64],
    "cross_attention_dim": 32,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 8,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
VAE = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "out_channels": 3,
    "sample_size": 16,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
}
TEXT_ENCODER = {
    "bos_token_id": 512,
    "eos_token_id": 513,
    "hidden_act": "quick_gelu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": TOKENS,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "projection_dim": 32,
    "vocab_size": 514,
}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    symbols = list(bytes_to_unicode().values())
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS
    )


@pytest.fixture(scope="session")
def configs():
    return {"unet": UNET, "vae": VAE, "text_encoder": TEXT_ENCODER, "scheduler": SCHEDULER}


@pytest.fixture(scope="session")
def configs_2(configs):
    """The ways in which Stable Diffusion 2 differs: linear projections, heads per level, GELU."""
    unet = {**UNET, "use_linear_projection": True, "attention_head_dim": [2, 4]}
    return {**configs, "unet": unet, "text_encoder": {**TEXT_ENCODER, "hidden_act": "gelu"}}


@pytest.fixture(scope="session")
def tiny(configs, tokenizer):
    """(model, params) in the manner of Stable Diffusion 1.5."""
    return init_stable_diffusion(configs, jax.random.key(0), tokenizer)


@pytest.fixture(scope="session")
def tiny_2(configs_2, tokenizer):
    """(model, params) in the manner of Stable Diffusion 2."""
    return init_stable_diffusion(configs_2, jax.random.key(1), tokenizer)
