"""Which files of a repository a reward model is read from, by those that it lists."""

import functools
import importlib.util

import pytest
from huggingface_hub import constants

from diffusionrl_jax.rewards import folders

CONFIG, WEIGHTS = "config.json", "model.safetensors"
CLIP_FILES = ("vocab.json", "merges.txt")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty one, with nothing that was converted."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize(
    ("reward", "path", "expected"),
    [
        ("hps_v2", "xswu/HPSv2", True),
        ("hps_v2", "xswu/HPSv2/HPS_v2.1_compressed.pt", True),
        ("hps_v2", "xswu/HPSv2/folder", False),
        ("hps_v2", "models", False),
        ("hps_v2", "/models/hps", False),
        ("jpeg_size", "xswu/HPSv2", False),
    ],
)
def test_what_is_of_the_hub(reward, path, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folders.is_hub_id(reward, path) is expected
    if not expected:
        assert folders.locate(reward, path) == path
    # A folder of that name is the one that is meant.
    if not path.startswith("/"):
        (tmp_path / path).mkdir(parents=True)
        assert not folders.is_hub_id(reward, path)


@pytest.mark.parametrize(
    ("reward", "path", "listed", "chosen", "followed"),
    [
        ("pick_score", "me/x", {CONFIG, WEIGHTS, *CLIP_FILES, "a.md"},
         {CONFIG, WEIGHTS, *CLIP_FILES}, {}),
        ("statistical_parity", "me/x", {CONFIG, WEIGHTS}, {CONFIG, WEIGHTS}, {}),
        ("hps_v2", "me/x", {"HPS_v2.1_compressed.pt"}, {"HPS_v2.1_compressed.pt"},
         {folders.CLIP: CLIP_FILES}),
        ("hps_v2", "me/x/own.pt", {"own.pt", CONFIG, WEIGHTS, *CLIP_FILES},
         {"own.pt", CONFIG}, {folders.CLIP: CLIP_FILES}),
        ("image_reward", "me/x", {"ImageReward.pt"}, {"ImageReward.pt"},
         {folders.BERT: ("vocab.txt",)}),
        ("aesthetic", "me/x", {"aesthetic-model.pth", CONFIG}, {"aesthetic-model.pth"},
         {folders.CLIP: (CONFIG, WEIGHTS)}),
        ("detection", "me/x", {"pytorch_model.bin", CONFIG, *CLIP_FILES},
         {"pytorch_model.bin", CONFIG, *CLIP_FILES}, {}),
    ],
)  # fmt: skip
def test_which_files_are_read(reward, path, listed, chosen, followed):
    need = folders.describe(reward, path)
    assert need.repository == "me/x"
    found = need.choose(listed, None)
    assert set(found) == chosen and len(found) == len(chosen)
    assert {each.repository: each.candidates for each in need.follow(found)} == followed


def test_a_repository_without_what_is_needed():
    need = folders.describe("pick_score", "me/x")
    with pytest.raises(FileNotFoundError, match="me/x on the Hugging Face hub has neither config"):
        need.choose({CONFIG, WEIGHTS}, None)


def test_a_pickle_without_pytorch(monkeypatch):
    need = folders.describe("hps_v2", "me/x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="me/x is published as a pickle.*the extra `torch`"):
        need.choose({"HPS_v2.1_compressed.pt"}, None)


def test_a_converted_folder_is_checked(tmp_path, caplog):
    find = functools.partial(folders.find_converted, "hps_v2", "xswu/HPSv2")
    assert find() is None
    folder = tmp_path / "diffusionrl_jax" / "converted" / "hps_v2--xswu--HPSv2"
    folder.mkdir(parents=True)
    (folder / CONFIG).write_bytes(b"{}")
    # SHA-256 of those two bytes, by sha256sum.
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    source = '{"repository": "xswu/HPSv2", "revision": "1", "files": {"config.json": "%s"}}'
    (folder / folders.SOURCE_FILE).write_text(source % digest)
    held = find()
    assert (held.folder, held.files, held.revision) == (folder, (CONFIG,), "1")
    assert folders.describe("hps_v2", "xswu/HPSv2") is None
    for text in (source % digest.replace("4", "5"), "[]", "{}", "not JSON"):
        (folder / folders.SOURCE_FILE).write_text(text)
        caplog.clear()
        assert find() is None
        assert f"{folder} is damaged" in caplog.text
