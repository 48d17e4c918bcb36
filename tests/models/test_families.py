"""Which family a folder is of, by its model_index.json alone, and what a family is not asked."""

import inspect
import json

import diffusers
import pytest
from etils import epath

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models import families


def write_index(folder, name):
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    return str(folder)


@pytest.mark.parametrize("name", ["StableDiffusionInpaintPipeline", None, ["my", "Pipeline"], 3])
def test_other_pipelines_are_refused_by_name(tmp_path, name):
    with pytest.raises(UserError, match="model_index.json: the pipeline is of class .*use one of"):
        families.load_model(write_index(tmp_path, name))


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_family_trains_the_denoiser_of_diffusers_pipeline(tmp_path, name):
    family = families.family_at(write_index(tmp_path, name))
    assert family == families.FAMILIES[name]
    parts = inspect.signature(getattr(diffusers, name).__init__).parameters
    assert {"unet", "transformer"} & parts.keys() == {family.denoiser}


def test_a_folder_without_an_index_is_told_apart(tmp_path):
    assert families.family_of(epath.Path(tmp_path)) is families.STABLE_DIFFUSION
    (tmp_path / "transformer").mkdir()
    with pytest.raises(UserError, match="model_index.json does not exist"):
        families.load_model(str(tmp_path))


def test_published_models_are_of_the_family_that_their_files_name(monkeypatch):
    monkeypatch.setattr(families.hub, "locate", lambda name: pytest.fail(f"{name} is fetched"))
    for name, denoiser in {
        "stabilityai/stable-diffusion-xl-base-1.0": "unet",
        "stabilityai/stable-diffusion-3.5-medium": "transformer",
        "": "unet",
    }.items():
        assert families.family_at(name).denoiser == denoiser


def test_options_of_other_models_are_refused(tmp_path):
    """Before a network is read: there is none."""
    write_index(tmp_path, "StableDiffusionPipeline")
    with pytest.raises(UserError, match="text_tokens=77 is for models of StableDiffusion3Pip"):
        families.load_model(str(tmp_path), text_tokens=77)
    write_index(tmp_path, "StableDiffusion3Pipeline")
    with pytest.raises(UserError, match="embedded_guidance=4.0 is for models of FluxPipeline"):
        families.load_model(str(tmp_path), embedded_guidance=4.0)
    with pytest.raises(UserError, match="is no folder here, and its sizes are not known"):
        families.model_shapes("nobody/nothing")


@pytest.mark.parametrize("pipeline", families.FAMILIES)
def test_guidance_is_that_of_the_pipeline_in_pytorch(pipeline):
    ours = families.FAMILIES[pipeline]
    parameters = inspect.signature(getattr(diffusers, pipeline).__call__).parameters
    # FLUX is guided by an input of the network, and classifier-free by another parameter.
    name = "true_cfg_scale" if pipeline == "FluxPipeline" else "guidance_scale"
    assert ours.guidance_scale == parameters[name].default
