"""How a checkpoint is named."""

import pytest

from diffusionrl_jax import runs


@pytest.mark.parametrize("name", ["a@best", "a@12", "a@b"])
def test_a_folder_that_is_there_wins(name, tmp_path):
    path, _, step = name.partition("@")
    assert runs.split_step(f"{tmp_path}/{name}") == (f"{tmp_path}/{path}", step)
    (tmp_path / name).mkdir()
    assert runs.split_step(f"{tmp_path}/{name}") == (f"{tmp_path}/{name}", "")
    assert runs.split_step(f"{tmp_path}/{name}@last") == (f"{tmp_path}/{name}", "last")
