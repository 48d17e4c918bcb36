"""A tiny Stable Diffusion of each kind, with a tokenizer that knows single bytes."""

import json

import jax
import pytest
from transformers import CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

from diffusionrl_jax.models.folders.published import NOISE_SCHEDULE
from diffusionrl_jax.models.stable_diffusion.build import init_stable_diffusion
from diffusionrl_jax.models.text_encoders import load_clip_tokenizer

TOKENS = 12
SCHEDULER = {"_class_name": "DDIMScheduler"} | NOISE_SCHEDULE
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


def byte_tokenizer(folder, **options):
    symbols = list(bytes_to_unicode().values())
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    CLIPTokenizer(*files, model_max_length=TOKENS, **options).save_pretrained(folder)
    return load_clip_tokenizer(folder)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer_2(tmp_path_factory):
    """Padded with "!", id 0, as Stable Diffusion 2's and the second one of XL are."""
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer_2"), pad_token="!")


@pytest.fixture(scope="session")
def configs():
    return {"unet": UNET, "vae": VAE, "text_encoder": TEXT_ENCODER, "scheduler": SCHEDULER}


@pytest.fixture(scope="session")
def configs_2(configs):
    """The ways in which Stable Diffusion 2 differs: linear projections, heads per level, GELU."""
    unet = {**UNET, "use_linear_projection": True, "attention_head_dim": [2, 4]}
    return {**configs, "unet": unet, "text_encoder": {**TEXT_ENCODER, "hidden_act": "gelu"}}


@pytest.fixture(scope="session")
def configs_21(configs_2):
    """What 2.1 adds: it predicts the velocity, with attention computed in float32."""
    scheduler = {**SCHEDULER, "prediction_type": "v_prediction"}
    return {
        **configs_2,
        "unet": {**configs_2["unet"], "upcast_attention": True},
        "scheduler": scheduler,
    }


@pytest.fixture(scope="session")
def configs_xl(configs_2):
    """Two text encoders, a pooled text and sizes beside the timestep, deeper transformers."""
    unet = {
        **configs_2["unet"],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "cross_attention_dim": 80,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "projection_class_embeddings_input_dim": 6 * 8 + 24,
        "transformer_layers_per_block": [1, 2],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    }
    # The end of the text is the largest id, as in all checkpoints with this eos_token_id.
    second = {"hidden_size": 48, "projection_dim": 24, "hidden_act": "gelu", "eos_token_id": 2}
    return {
        "unet": unet,
        "vae": {**VAE, "scaling_factor": 0.13025, "force_upcast": True},
        "text_encoder": TEXT_ENCODER,
        "text_encoder_2": {**TEXT_ENCODER, **second, "num_hidden_layers": 3},
        "scheduler": {**SCHEDULER, "_class_name": "EulerDiscreteScheduler"},
        "pipeline": {"force_zeros_for_empty_prompt": True},
    }


@pytest.fixture(scope="session")
def tiny_xl(configs_xl, tokenizer, tokenizer_2):
    """(model, params) in the manner of Stable Diffusion XL."""
    return init_stable_diffusion(configs_xl, jax.random.key(2), tokenizer, tokenizer_2=tokenizer_2)


@pytest.fixture(scope="session")
def tiny(configs, tokenizer):
    """(model, params) in the manner of Stable Diffusion 1.5."""
    return init_stable_diffusion(configs, jax.random.key(0), tokenizer)


@pytest.fixture(scope="session")
def tiny_2(configs_21, tokenizer_2):
    """(model, params) in the manner of Stable Diffusion 2.1."""
    return init_stable_diffusion(configs_21, jax.random.key(1), tokenizer_2)
