"""Files by a pattern, against `pathlib`, whatever their folder is called."""

import pathlib

import pytest
from etils import epath

from diffusionrl_jax.data.literal_path import LiteralPath


@pytest.mark.parametrize("name", ["plain", "a[1]", "what?", "*", "a{b}"])
@pytest.mark.parametrize("pattern", ["*", "*.txt", "inner/*", "*/b.txt", "none*", "c*"])
def test_a_folder_is_no_part_of_the_pattern(name, pattern, tmp_path):
    folder = tmp_path / name
    (folder / "inner").mkdir(parents=True)
    for file in ("a.txt", "c[2].txt", "inner/b.txt", "inner/d.png"):
        (folder / file).touch()
    found = sorted(map(str, LiteralPath(folder).glob(pattern)))
    assert found == sorted(map(str, pathlib.Path(folder).glob(pattern)))


def test_what_is_found_is_literal_too(tmp_path):
    (tmp_path / "[0]").mkdir()
    (tmp_path / "[0]" / "a.txt").touch()
    (folder,) = LiteralPath(tmp_path).glob("*")
    assert [path.name for path in folder.glob("*")] == ["a.txt"]
    assert epath.Path(folder) == epath.Path(tmp_path / "[0]")
