"""Tokenizers for models whose own are not here: which words one has does not change a shape."""

import functools

from tokenizers import Tokenizer, models
from transformers import CLIPTokenizerFast, T5TokenizerFast

from diffusionrl_jax import assets
from diffusionrl_jax.models.text_encoders import load_clip_tokenizer

CLIP_TOKENIZER = "asset:emoji/stable_diffusion/tokenizer"
CLIP_TOKENS = 77


@functools.lru_cache
def clip_tokenizer() -> CLIPTokenizerFast:
    """Returns a tokenizer of CLIP that reads as many tokens as published ones."""
    tokenizer = load_clip_tokenizer(assets.resolve(CLIP_TOKENIZER))
    tokenizer.model_max_length = CLIP_TOKENS
    return tokenizer


@functools.lru_cache
def t5_tokenizer() -> T5TokenizerFast:
    """Returns a tokenizer of T5 that knows no words."""
    words = [(word, 0.0) for word in ("<pad>", "</s>", "<unk>")]
    return T5TokenizerFast(tokenizer_object=Tokenizer(models.Unigram(words, 2)), extra_ids=0)
