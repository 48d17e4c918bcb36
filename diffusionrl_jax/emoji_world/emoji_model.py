"""The tiny Stable Diffusion of the emoji world: its architecture and its tokenizer."""

import json
import tempfile
from pathlib import Path
from typing import Any

import tokenizers
from etils import epath
from transformers import CLIPTokenizer, CLIPTokenizerFast
from transformers.models.clip.tokenization_clip import bytes_to_unicode

from diffusionrl_jax.data import prompts
from diffusionrl_jax.data.emoji import pictures, vocabulary
from diffusionrl_jax.models.text_encoders import load_clip_tokenizer

TOKENS = 16  # A prompt's length. The longest of the world has 11.
START, END = "<|startoftext|>", "<|endoftext|>"

VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [16, 32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "act_fn": "silu",
    "sample_size": pictures.IMAGE_SIZE,
}
UNET = {
    "sample_size": pictures.IMAGE_SIZE // 4,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [64, 96],
    # There is attention at 4x4 only: at 8x8 it doubled the time and gained nothing visible.
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 64,
    "norm_num_groups": 32,
    "act_fn": "silu",
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}
TEXT_ENCODER = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": TOKENS,
    "hidden_act": "quick_gelu",
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}


def world_prompts() -> list[str]:
    """Returns prompts that together have every word of the world."""
    nouns = list(vocabulary.OBJECTS)
    things = [f"{prompts.article(noun)} {noun}" for noun in nouns]
    pairs = [f"{thing} {relation} {thing}" for thing in things for relation in prompts.RELATIONS]
    people = [f"a portrait of {prompts.article(job)} {job}" for job in vocabulary.OCCUPATIONS]
    return things + pairs + people


def train_tokenizer() -> CLIPTokenizerFast:
    """Trains a CLIP tokenizer whose byte pairs are merged on the world's own prompts."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    model.normalizer = tokenizers.normalizers.Lowercase()
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1024,
        end_of_word_suffix="</w>",
        initial_alphabet=[chr(code) for code in range(ord("a"), ord("z") + 1)],
        show_progress=False,
    )
    model.train_from_iterator(world_prompts(), trainer)
    learned = json.loads(model.to_str())["model"]
    # CLIP lists every byte alone and at a word's end, then the merges, then the two markers.
    tokens = list(bytes_to_unicode().values())
    tokens += [f"{token}</w>" for token in tokens]
    merges = [tuple(merge) for merge in learned["merges"]]
    tokens += ["".join(merge) for merge in merges] + [START, END]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary_file, merges_file = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        unique = list(dict.fromkeys(tokens))
        vocabulary_file.write_text(json.dumps({token: id for id, token in enumerate(unique)}))
        merges_file.write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
        CLIPTokenizer(
            str(vocabulary_file),
            str(merges_file),
            unk_token=END,
            bos_token=START,
            eos_token=END,
            pad_token=END,
            model_max_length=TOKENS,
        ).save_pretrained(folder)
        return load_clip_tokenizer(epath.Path(folder))


def text_encoder_config(tokenizer: CLIPTokenizerFast) -> dict[str, Any]:
    """Returns the text encoder's config, which has the tokenizer's words and special tokens."""
    return TEXT_ENCODER | {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def configs(tokenizer: CLIPTokenizerFast, scaling_factor: float) -> dict[str, dict]:
    """Returns the folder's configs: "unet", "vae", "text_encoder" and "scheduler".

    Args:
      tokenizer: the tokenizer, which decides the vocabulary's size and the special tokens.
      scaling_factor: the factor that gives the VAE's latents unit variance.
    """
    return {
        "unet": UNET,
        "vae": VAE | {"scaling_factor": scaling_factor},
        "text_encoder": text_encoder_config(tokenizer),
        "scheduler": SCHEDULER,
    }
