"""Folders of rewards whose tokenizer is not the model's."""

import pytest
from transformers import CLIPTokenizer

from diffusionrl_jax import assets
from diffusionrl_jax.rewards import REWARDS, checkpoint


def test_a_foreign_tokenizer_is_refused(make_original, parity):
    _, folder = make_original("clip_score")
    parity.originals.common.write_clip_tokenizer(folder, 700)
    with pytest.raises(ValueError, match="use the tokenizer that the model was published with"):
        REWARDS["clip_score"].load(str(folder))
    (folder / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks merges\.txt"):
        REWARDS["clip_score"].load(str(folder))


def test_a_clip_rewards_tokenizer_that_knows_more():
    folder = assets.resolve("asset:emoji/detection")
    size = len(CLIPTokenizer.from_pretrained(folder))
    assert checkpoint.read_clip_tokenizer(folder, size).eos_token_id == size - 1
    with pytest.raises(ValueError, match=f"has {size} words .* the model knows {size - 1}"):
        checkpoint.read_clip_tokenizer(folder, size - 1)
