"""What is said of a Stable Diffusion before it is opened, against PyTorch's own networks."""

import diffusers
import pytest
import transformers

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders import hub
from diffusionrl_jax.models.stable_diffusion.description import describe


def numel(kind, folder, part):
    network = kind.from_pretrained(folder, subfolder=part)
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("kind", ["tiny_model", "tiny_xl_model"])
def test_a_folder_has_as_many_parameters_as_pytorch_opens(kind, request):
    folder = request.getfixturevalue(kind)
    found = describe(folder)
    assert found.denoiser == numel(diffusers.UNet2DConditionModel, folder, "unet")
    assert found.vae == numel(diffusers.AutoencoderKL, folder, "vae")
    encoders = numel(transformers.CLIPTextModel, folder, "text_encoder")
    if kind == "tiny_xl_model":
        second = transformers.CLIPTextModelWithProjection
        encoders += numel(second, folder, "text_encoder_2")
    assert found.text_encoder == found.largest_encoder == encoders
    # Latents of 16 by 16, and a VAE that halves once; 16 tokens.
    width = 16 + 24 if kind == "tiny_xl_model" else 16
    assert (found.latent, found.image, found.text) == (4 * 16**2, 3 * 32**2, 16 * width)
    smaller = describe(folder, (24, 20))
    assert (smaller.latent, smaller.image) == (4 * 12 * 10, 3 * 24 * 20)
    assert smaller.denoiser == found.denoiser


@pytest.mark.parametrize("name", ["sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5"])
def test_a_published_model_is_described_without_its_files(name, monkeypatch):
    monkeypatch.setattr(hub, "locate", lambda name: pytest.fail(f"{name} is fetched"))
    found = describe(name)
    # As published: the numbers of PyTorch's UNet and of CLIP's text encoder.
    assert (found.denoiser, found.text_encoder) == (859_520_964, 123_060_480)
    assert (found.latent, found.image, found.text) == (4 * 64**2, 3 * 512**2, 77 * 768)


def test_a_model_has_to_be_named():
    with pytest.raises(UserError, match="config.model is empty: name a diffusers folder"):
        describe("")
