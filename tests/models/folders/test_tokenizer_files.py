"""The files of a tokenizer's folder: what is missing or wrong is told by its file."""

import shutil

import pytest
from etils import epath

from diffusionrl_jax import assets
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders.tokenizer_files import read_clip_tokenizer_files

SHIPPED = assets.resolve("asset:emoji/stable_diffusion/tokenizer")


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "tokenizer")
    return epath.Path(tmp_path / "tokenizer")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_tokenizer_without_one_of_its_files(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"tokenizer/{name} does not exist, nor does"):
        read_clip_tokenizer_files(folder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("vocab.json", '{"a": "b"}', "each with a whole number of its own"),
        ("vocab.json", '{"a": 0, "b": 0}', "each with a whole number of its own"),
        ("merges.txt", "#version: 0.2\na b c\n", "line 2 is 'a b c', and must be two parts"),
        ("merges.txt", "\xff", "merges.txt is not UTF-8"),
        ("tokenizer.json", "{}", "tokenizer.json: model is not of type BPE"),
        ("tokenizer.json", '{"model": {"type": "WordPiece"}}', "model is not of type BPE"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}}}', "model.merges .* missing"),
        ("tokenizer.json", '{"model": {"vocab": {}, "merges": []}}', "must have a word or more"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": [["a"]]}}', "model.merges"),
        ("tokenizer.json", '{"model": {"vocab": 3, "merges": []}}', "model.vocab"),
    ],
)
def test_files_of_a_tokenizer(folder, name, content, words):
    if name == "tokenizer.json":
        for other in ("vocab.json", "merges.txt"):
            (folder / other).unlink()
    (folder / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=words) as error:
        read_clip_tokenizer_files(folder)
    assert str(folder / name) in str(error.value)
