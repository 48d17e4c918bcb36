"""What transformers 5 has saved: a tokenizer in one file, and a text encoder with a text's states.

`transformers_5/` was written by that version, from the shipped tokenizer and a random text encoder
of the size of the tiny model's.
"""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from transformers import CLIPTokenizer

from diffusionrl_jax import assets
from diffusionrl_jax.models.folders.weights import read_safetensors, write_safetensors
from diffusionrl_jax.models.stable_diffusion.folder import (
    load_stable_diffusion,
    save_stable_diffusion,
)
from diffusionrl_jax.models.text_encoders import load_tokenizer, tokenize

SAVED = pathlib.Path(__file__).parent / "transformers_5"
TEXTS = json.loads((SAVED / "expected.json").read_text())["texts"]
PROMPTS = [text["prompt"] for text in TEXTS]
IDS = [text["ids"] for text in TEXTS]


@pytest.fixture
def folder(tiny_model, tmp_path):
    """The tiny model with these two parts."""
    shutil.copytree(tiny_model, tmp_path / "model")
    for name in ("tokenizer", "text_encoder"):
        shutil.rmtree(tmp_path / "model" / name)
        shutil.copytree(SAVED / name, tmp_path / "model" / name)
    return tmp_path / "model"


def test_the_tokenizer_has_no_words_of_its_own():
    names = {file.name for file in (SAVED / "tokenizer").iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json"}


def test_ids_and_states(folder):
    model, params = load_stable_diffusion(folder)
    ids = model.tokenize(PROMPTS)
    np.testing.assert_array_equal(ids, IDS)
    states = jax.jit(model.encode_text)(params["text_encoder"], ids).mean(1)
    expected = [text["mean_state"] for text in TEXTS]
    np.testing.assert_allclose(states, expected, atol=2e-5)


def test_names_with_the_module_that_holds_them(folder):
    """That version keeps the names of what it has read from an earlier one's file."""
    _, expected = load_stable_diffusion(folder)
    file = folder / "text_encoder" / "model.safetensors"
    state = read_safetensors(file)
    assert not any(name.startswith("text_model.") for name in state)
    write_safetensors(file, {f"text_model.{name}": tensor for name, tensor in state.items()})
    _, params = load_stable_diffusion(folder)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_an_export_opens_again(folder, tmp_path):
    save_stable_diffusion(tmp_path / "export", *load_stable_diffusion(folder))
    model, _ = load_stable_diffusion(tmp_path / "export")
    np.testing.assert_array_equal(model.tokenize(PROMPTS), IDS)


def test_pairs_in_one_text(tmp_path):
    """As tokenizers saved them before 0.20; the words' own files are another oracle."""
    shutil.copytree(SAVED / "tokenizer", tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer.json"
    fields = json.loads(file.read_text())
    fields["model"]["merges"] = [" ".join(pair) for pair in fields["model"]["merges"]]
    file.write_text(json.dumps(fields))
    ours = load_tokenizer(epath.Path(file.parent), CLIPTokenizer)
    shipped = load_tokenizer(
        assets.resolve("asset:emoji/stable_diffusion/tokenizer"), CLIPTokenizer
    )
    np.testing.assert_array_equal(tokenize(ours, PROMPTS), tokenize(shipped, PROMPTS))
    assert ours.get_vocab() == shipped.get_vocab()
