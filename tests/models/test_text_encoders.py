"""Tokens against those of transformers 5, which is not installed beside our networks.

awkward_prompts.json holds what its CLIPTokenizer makes of each prompt by the shipped tokenizer's
folder, with truncation at 77 tokens.
"""

import json
import pathlib
import shutil
import sys
import types

import numpy as np
import pytest
import tokenizers
import transformers
from etils import epath
from transformers import CLIPTokenizer, T5TokenizerFast

from diffusionrl_jax import assets
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models import text_encoders
from diffusionrl_jax.models.stable_diffusion.folder import (
    load_stable_diffusion,
    save_stable_diffusion,
)
from diffusionrl_jax.rewards.image_reward import ImageReward

TOKENIZER = "asset:emoji/stable_diffusion/tokenizer"
AWKWARD = json.loads(pathlib.Path(__file__).with_name("awkward_prompts.json").read_text())
LENGTH = 77


def differing(tokenizer):
    """The prompts whose ids are not those of the file."""
    prompts, expected = zip(*AWKWARD["prompts"], strict=True)
    ids = text_encoders.tokenize(tokenizer, prompts, LENGTH)
    end = tokenizer.eos_token_id
    padded = [row + [end] * (LENGTH - len(row)) for row in expected]
    return [p for p, row, theirs in zip(prompts, ids, padded, strict=True) if list(row) != theirs]


@pytest.mark.parametrize("ftfy", [None, types.SimpleNamespace(fix_text=str.upper)])
def test_ids_are_those_of_transformers_5(ftfy, monkeypatch):
    """Whether ftfy is installed, which CLIPTokenizer of transformers 4 asks, or is not."""
    monkeypatch.setitem(sys.modules, "ftfy", ftfy)
    assert AWKWARD["transformers"].startswith("5.") and len(AWKWARD["prompts"]) > 200
    folder = assets.resolve(TOKENIZER)
    assert not differing(text_encoders.load_clip_tokenizer(folder))


def test_a_tokenizer_json_alone_gives_the_same_ids(tmp_path):
    """As transformers 5 saves it; what it says of how texts are taken apart is not heeded."""
    whole = text_encoders.load_clip_tokenizer(assets.resolve(TOKENIZER))
    text_encoders.save_tokenizer(epath.Path(tmp_path), whole)
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    assert not differing(text_encoders.load_clip_tokenizer(tmp_path))
    file = tmp_path / "tokenizer.json"
    fields = json.loads(file.read_text())
    assert fields["normalizer"]["normalizers"].pop() == {"type": "Lowercase"}
    file.write_text(json.dumps(fields))
    assert not differing(text_encoders.load_clip_tokenizer(tmp_path))


def test_vocab_and_merges_count_where_a_tokenizer_json_says_otherwise(tmp_path):
    whole = text_encoders.load_clip_tokenizer(assets.resolve(TOKENIZER))
    text_encoders.save_tokenizer(epath.Path(tmp_path), whole)
    file = tmp_path / "tokenizer.json"
    fields = json.loads(file.read_text())
    words = fields["model"]["vocab"]
    words["a</w>"], words["b</w>"] = words["b</w>"], words["a</w>"]
    file.write_text(json.dumps(fields))
    assert not differing(text_encoders.load_clip_tokenizer(tmp_path))
    file.write_text("{")
    assert not differing(text_encoders.load_clip_tokenizer(tmp_path))


def test_what_is_saved_gives_the_same_ids_to_older_versions(tmp_path):
    whole = text_encoders.load_clip_tokenizer(assets.resolve(TOKENIZER))
    text_encoders.save_tokenizer(epath.Path(tmp_path), whole)
    assert not differing(transformers.CLIPTokenizerFast.from_pretrained(tmp_path))
    assert {"vocab.json", "merges.txt", "tokenizer.json"} <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_a_tokenizer_that_knows_more_than_its_text_encoder(name, tiny_xl, tmp_path):
    save_stable_diffusion(tmp_path, *tiny_xl)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / name)
    tokenizer.add_tokens(["<toy>", "<dog>"])
    tokenizer.save_pretrained(tmp_path / name)
    network = name.replace("tokenizer", "text_encoder")
    message = f"tokenizer of {network} knows more .* has 514: 2 more, the first '<toy>', number 514"
    with pytest.raises(ValueError, match=message):
        load_stable_diffusion(tmp_path)


def test_a_reward_models_tokenizer_that_knows_more(tmp_path):
    shutil.copytree(assets.resolve("asset:emoji/image_reward"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["vocab_size"] -= 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"The tokenizer in {tmp_path} knows more tokens"):
        ImageReward.load(str(tmp_path))


def test_prompts_that_are_cut_are_told(tiny, tiny_xl):
    """The byte tokenizers keep 10 bytes of a prompt, between two markers."""
    prompts = [
        "0123456789",
        "01234567890",
        "",
        "a" * 5000,
        "é" * 5,
        "é" * 6,
        "\u0130" * 4,
        "a b c d e",
    ]
    for model, _ in (tiny, tiny_xl):
        cut = model.are_cut(prompts)
        theirs = [len(model.tokenizer(prompt, verbose=False).input_ids) > 12 for prompt in prompts]
        np.testing.assert_array_equal(cut, theirs)
        assert cut.tolist() == [False, True, False, True, False, True, True, False]


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_t5s_ids_are_those_of_its_tokenizer_json(scheme, tmp_path):
    """Whatever its tokenizer_config.json says of spaces, on which PyTorch asks for spiece.model.

    Published tokenizers put a space before each text's start (and "legacy" ones before each
    piece's): the pre-tokenizer does so in either case.
    """
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), ("\u2581a", -1.0)]
    words += [("a", -3.0), ("cat", -1.0), ("\u2581cat", -1.0), ("!", -1.0)]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(words, 2))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        "$A </s>", special_tokens=[("</s>", 1)]
    )
    theirs = T5TokenizerFast(tokenizer_object=backend, extra_ids=0)
    theirs.init_kwargs["add_prefix_space"] = theirs.add_prefix_space = True
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError):
        T5TokenizerFast.from_pretrained(tmp_path)
    ours = text_encoders.load_t5_tokenizer(epath.Path(tmp_path))
    prompts = ["a cat", "  a  cat", "", "cat!", "a</s> cat</s>a", "A dog", "a\ncat", "\u732b"]
    expected = theirs(prompts).input_ids
    assert ours(prompts).input_ids == expected and expected[0] == [4, 7, 1]


def test_a_t5_tokenizer_in_its_older_form_alone(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"x")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="tokenizer.json does not exist.*T5TokenizerFast"):
        text_encoders.load_t5_tokenizer(epath.Path(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", '{"version": "1.0", "mod', "EOF while parsing"),
        ("tokenizer.json", "{}", "Model missing"),
        ("tokenizer.json", "", "EOF while parsing"),
        ("merges.txt", "#version: 0.2\nzz qq\n", "out of vocabulary"),
        ("tokenizer_config.json", '{"padding_side": 3}', "Padding side"),
    ],
)
def test_a_damaged_tokenizer_is_told_by_its_folder(name, content, words, tmp_path):
    if name == "tokenizer.json":
        load = text_encoders.load_t5_tokenizer
        (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {}}')
    else:
        load = text_encoders.load_clip_tokenizer
        shutil.copytree(assets.resolve(TOKENIZER), tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words) as error:
        load(epath.Path(tmp_path))
    assert str(error.value).startswith(f"{tmp_path}: ") and "\n" not in str(error.value)
