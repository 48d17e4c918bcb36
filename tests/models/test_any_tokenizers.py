"""Tokenizers that stand in for published ones read as many tokens, with the same special ones."""

import numpy as np
from transformers import CLIPTokenizer, T5Config

from diffusionrl_jax import assets
from diffusionrl_jax.models import any_tokenizers
from diffusionrl_jax.models.folders import published
from diffusionrl_jax.models.text_encoders import load_clip_tokenizer, tokenize

PROMPTS = ["", "a fox next to a cake", "a zebra " * 60]


def test_clip_reads_as_many_tokens_as_published_encoders_have_places():
    tokenizer = any_tokenizers.clip_tokenizer()
    folder = str(assets.resolve(any_tokenizers.CLIP_TOKENIZER))
    theirs = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    expected = theirs(PROMPTS, padding="max_length", truncation=True, return_tensors="np")
    np.testing.assert_array_equal(tokenize(tokenizer, PROMPTS), expected.input_ids)
    for configs in published.CONFIGS.values():
        assert configs["text_encoder"]["max_position_embeddings"] == expected.input_ids.shape[1]
        assert len(tokenizer) <= configs["text_encoder"]["vocab_size"]


def test_the_shipped_tokenizer_keeps_its_own_length():
    any_tokenizers.clip_tokenizer()
    shipped = load_clip_tokenizer(assets.resolve(any_tokenizers.CLIP_TOKENIZER))
    assert shipped.model_max_length == 16


def test_t5_pads_to_what_is_asked_for_with_the_tokens_of_transformers():
    tokenizer, config = any_tokenizers.t5_tokenizer(), T5Config()
    special = tokenizer.pad_token_id, tokenizer.eos_token_id
    assert special == (config.pad_token_id, config.eos_token_id)
    found = tokenize(tokenizer, PROMPTS, 256)
    assert found.shape == (3, 256) and found.max() < len(tokenizer) <= config.vocab_size
    np.testing.assert_array_equal(found[:, -1], config.pad_token_id)
