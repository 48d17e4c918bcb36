"""What names a model."""

import shutil

import numpy as np
import pytest

from diffusionrl_jax.models import hub
from diffusionrl_jax.models.stable_diffusion import load_stable_diffusion


def test_what_names_a_model_means_the_same_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.expand("somebody/something", "--model") == "somebody/something"
    (tmp_path / "somebody" / "something").mkdir(parents=True)
    folder = str(tmp_path / "somebody" / "something")
    for text in ("somebody/something", "~/somebody/something", f"{folder}/"):
        assert hub.expand(text, "--model") == folder
        assert str(hub.locate(text)) == folder
    asset = "asset:emoji/stable_diffusion"
    assert hub.expand(asset, "--model") == asset
    assert (hub.locate(asset) / "unet").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config.model is empty"),
        ("https://huggingface.co/a/b", "config.model=https://.*: https:// is not known"),
        ("file:///a/b", "without file://"),
        ("a\0b", "NUL"),
    ],
)
def test_what_names_no_model(text, message):
    with pytest.raises(ValueError, match=message):
        hub.locate(text)


@pytest.mark.parametrize("step", ["", "@best", "@12"])
def test_a_run_is_no_model_to_start_from(step, tmp_path):
    run = tmp_path / "a run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.model=.* export it") as caught:
        hub.locate(f"{run}{step}")
    assert f"--checkpoint='{run}{step}' " in str(caught.value)
    # A model may have a file of that name, too.
    (run / "unet").mkdir()
    assert hub.locate(str(run)) == run


def test_a_model_in_a_folder_with_any_name(tiny_model, tmp_path):
    name = "a[1]*? \udce9"
    shutil.copytree(tiny_model, tmp_path / name)
    _, expected = load_stable_diffusion(tiny_model)
    _, params = load_stable_diffusion(f"{tmp_path}/{name}")
    kernel = lambda tree: np.asarray(tree["unet"]["conv_in"]["kernel"])
    np.testing.assert_array_equal(kernel(params), kernel(expected))
