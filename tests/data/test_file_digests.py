"""Digests against those of coreutils."""

import hashlib
import subprocess

import pytest

from diffusionrl_jax.data.file_digests import file_digest, folder_digest, settings_digest


@pytest.fixture
def folder(tmp_path):
    for name in ("b.txt", "a/c d.bin", "a/ü.txt", "Z", ".hidden/x", "a/.x"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode() * 100)
    return tmp_path


def test_they_are_what_sha256sum_prints(folder):
    listed = "LC_ALL=C sha256sum Z a/c* a/ü.txt b.txt"
    command = f"{listed} | sha256sum; sha256sum b.txt"
    printed = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True)
    whole, one = (line.split()[0] for line in printed.stdout.splitlines())
    assert folder_digest(folder) == whole
    assert file_digest(folder / "b.txt") == folder_digest(folder / "b.txt") == one


def test_content_and_names_count(folder):
    found = [folder_digest(folder)]
    (folder / "b.txt").write_bytes(b"other")
    found.append(folder_digest(folder))
    (folder / "b.txt").rename(folder / "a" / "b.txt")
    found.append(folder_digest(folder))
    assert len(set(found)) == 3
    (folder / ".hidden" / "x").write_bytes(b"other")
    assert folder_digest(folder) == found[-1]


def test_settings_have_one_name_whatever_their_order():
    """It is that of the JSON with sorted names, as `sha256sum` digests it."""
    text = b'{"a": [1, null], "b": "x"}'
    expected = hashlib.sha256(text).hexdigest()[:16]
    assert settings_digest({"b": "x", "a": [1, None]}) == expected
