"""Sizes, pictures and prompts of a model, against PyTorch's pipelines."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.families import describe_model, load_model
from tests.models.mmdit.test_folder import open_pytorch


def test_encoded_pictures_are_pytorchs(make_folder):
    folder = make_folder()
    model, params = load_model(str(folder))
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    mean, std = jax.jit(model.encode)(params["vae"], images)
    vae = open_pytorch(folder).vae
    with torch.no_grad():
        posterior = vae.encode(torch.from_numpy(2 * images - 1).permute(0, 3, 1, 2)).latent_dist
    expected = (posterior.mean.numpy() - 0.0609) * 1.5305
    assert np.abs(mean - expected).max() < 1e-5
    assert np.abs(std - 1.5305 * posterior.std.numpy()).max() < 1e-5
    assert np.abs(expected).max() > 0.1


def test_sizes(make_folder):
    model, _ = load_model(str(make_folder()), size=(24, 16))
    assert model.latent_shape == (16, 12, 8) and model.image_shape == (24, 16, 3)
    with pytest.raises(UserError, match="width of 18 pixels must be a multiple of 4.*use 16"):
        load_model(str(make_folder()), size=(16, 18))
    with pytest.raises(UserError, match="8 x 4 patches is larger .* 6 x 6"):
        load_model(str(make_folder()), size=(32, 16))


def changed(folder, target, **fields):
    """A copy of a folder with other fields of its transformer."""
    shutil.copytree(folder, target)
    file = target / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return target


def test_a_transformer_of_no_whole_patches_needs_a_size(make_folder, tmp_path):
    folder = changed(make_folder(), tmp_path / "odd", sample_size=9)
    for opened in (load_model, describe_model):
        with pytest.raises(UserError, match="sample_size is 9, .* the patches' 2: set the pict"):
            opened(str(folder))
    model, _ = load_model(str(folder), size=(16, 16))
    assert model.latent_shape == (16, 8, 8)


def test_fluxs_size_is_its_pipelines(make_folder, tmp_path):
    """PyTorch's does not read a sample_size."""
    folder = changed(make_folder(flux=True), tmp_path / "odd", sample_size=33)
    model, _ = load_model(str(folder))
    pipeline = open_pytorch(folder, flux=True)
    side = pipeline.default_sample_size * pipeline.vae_scale_factor
    assert model.image_shape == (side, side, 3) and model.latent_shape == (16, 128, 128)


def test_cut_prompts_are_those_that_t5_does_not_read(make_folder):
    model, _ = load_model(str(make_folder()))
    assert model.are_cut(["a" * 100, "a" * 300]).tolist() == [False, True]
    without, _ = load_model(str(make_folder(False)))
    assert without.are_cut(["a" * 100, "a"]).tolist() == [True, False]


@pytest.mark.parametrize("has_t5", [True, False])
def test_texts_are_held_as_the_transformer_reads_them(make_folder, has_t5):
    model, params = load_model(str(make_folder(has_t5)), dtype=jnp.bfloat16)
    text = jax.eval_shape(model.encode_text, params["text_encoder"], model.tokenize(["a"]))
    assert text.states.dtype == text.pooled.dtype == jnp.bfloat16
