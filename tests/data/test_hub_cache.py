"""Files of huggingface_hub's cache, by the digests that hashlib and git give them."""

import hashlib
import os
import pathlib
import subprocess

import pytest
from huggingface_hub import constants

from diffusionrl_jax.data import hub_cache


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("cache_of_hub", "folder"),
    [
        ("/home/me/.cache/huggingface/hub", "/home/me/.cache/huggingface/diffusionrl_jax"),
        ("/cache", "/cache/diffusionrl_jax"),
        ("/mnt/shared", "/mnt/shared/diffusionrl_jax"),
    ],
)
def test_what_is_made_lies_where_may_be_written(cache_of_hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache_of_hub)
    assert hub_cache.cache_folder() == pathlib.Path(folder)


def write(folder, content, digest):
    """A blob that is named by a digest, and a link to it, as snapshots have them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / digest).write_bytes(content)
    (folder / "name").unlink(missing_ok=True)
    (folder / "name").symlink_to(digest)
    return folder / "name"


def git_digest(content):
    command = ["git", "hash-object", "--stdin"]
    return subprocess.run(command, input=content, capture_output=True).stdout.decode().strip()


@pytest.mark.parametrize(
    "digest", [git_digest, lambda content: hashlib.sha256(content).hexdigest()], ids=["git", "lfs"]
)
def test_a_file_is_whole_if_it_has_its_digest(digest, tmp_path):
    content = b"some\0content\n"
    path = write(tmp_path, content, digest(content))
    assert hub_cache.is_whole(path)
    assert hub_cache.is_whole(path, digest(content))
    assert not hub_cache.is_whole(path, digest(b"other"))
    path = write(tmp_path, content[:-1] + b"?", digest(content))
    assert not hub_cache.is_whole(path)
    path.resolve().unlink()
    assert not hub_cache.is_whole(path)


def test_a_file_without_a_digest_is_taken_for_whole(tmp_path):
    path = write(tmp_path, b"anything", "no_digest")
    assert hub_cache.is_whole(path)
    assert not hub_cache.is_whole(path, hashlib.sha256(b"else").hexdigest())


def test_a_file_is_read_again_only_when_it_changes(tmp_path, cache, monkeypatch):
    content = b"x" * 1000
    path = write(tmp_path, content, hashlib.sha256(content).hexdigest())
    assert hub_cache.is_whole(path)
    assert len(list((cache / "diffusionrl_jax" / "checked").iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(hub_cache, "_compute_digest", lambda *_: pytest.fail("read again"))
        assert hub_cache.is_whole(path)
    path.resolve().write_bytes(content[:-1] + b"y")
    os.utime(path.resolve(), (1, 1))
    assert not hub_cache.is_whole(path)


def test_what_is_damaged_is_removed_with_what_it_links_to(tmp_path, caplog):
    path = write(tmp_path / "blobs", b"damaged", "0" * 40)
    hub_cache.remove_damaged(path)
    assert list((tmp_path / "blobs").iterdir()) == []
    assert f"{path} is damaged" in caplog.text


@pytest.mark.parametrize(
    ("kind", "name"), [("model", "models--me--thing"), ("dataset", "datasets--me--thing")]
)
def test_a_repository_has_its_folder_in_the_cache(kind, name, cache):
    """As huggingface_hub's documentation of its cache says."""
    assert hub_cache.home("me/thing", kind) == cache / "hub" / name
