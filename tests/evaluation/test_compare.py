"""Which models the program compares, as they are typed."""

import json
import shutil

import pytest

from diffusionrl_jax.evaluation import compare
from diffusionrl_jax.evaluation.compare import parse_checkpoint, split_checkpoints
from tests.data.test_files import NAMES


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("a=/x", ["a=/x"]),
        ("a=/x@best,b=/y@12", ["a=/x@best", "b=/y@12"]),
        ("a=/x,y/z,b=/y", ["a=/x,y/z", "b=/y"]),
    ],
)
def test_several_are_taken_apart_at_commas(text, parts):
    assert split_checkpoints(text) == parts


@pytest.mark.parametrize("name", [*NAMES, "a,b=c", "a,b=/c@best", "a@best"], ids=ascii)
@pytest.mark.parametrize("step", ["", "best"])
def test_paths_that_are_there_are_left_whole(name, step, tmp_path):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    after = f"@{step}" if step else ""
    text = f"one={folder}{after},two={folder}{after}"
    found = [parse_checkpoint(part) for part in split_checkpoints(text)]
    assert found == [("one", str(folder), step), ("two", str(folder), step)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/x", "is not name=PATH"),
        ("=/x", "is not name=PATH"),
        ("a=", "is not name=PATH"),
        ("a=https://b", "--checkpoints=a=https://b: https:// is not known"),
        ("a=~nobody_at_all", "there is no user"),
    ],
)
def test_what_names_no_checkpoint(text, message):
    with pytest.raises(ValueError, match=message):
        parse_checkpoint(text)


def test_hub_ids_and_shipped_models_are_left_as_they_are():
    for text in ("nobody/nothing", "asset:emoji/stable_diffusion"):
        assert parse_checkpoint(f"a={text}") == ("a", text, "")


def test_another_size_is_refused_before_anything_is_drawn(
    make_config, tiny_model, tmp_path, monkeypatch
):
    larger = shutil.copytree(tiny_model, tmp_path / "larger") / "unet" / "config.json"
    unet = json.loads(larger.read_text())
    larger.write_text(json.dumps(unet | {"sample_size": 2 * unet["sample_size"]}))
    monkeypatch.setattr(compare, "load_policy", lambda config: pytest.fail("It was opened."))
    models = [("same", str(tiny_model), ""), ("larger", str(larger.parent.parent), "")]
    with pytest.raises(ValueError, match="larger draws pictures of another size"):
        compare.compare_models(make_config(), models, str(tmp_path))
