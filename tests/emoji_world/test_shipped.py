"""The shipped emoji world opens in PyTorch, draws the same pictures there, and is good enough."""

import importlib.resources
import pathlib
import re

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from diffusionrl_jax import assets
from diffusionrl_jax.data.emoji import pictures, vocabulary
from diffusionrl_jax.diffusion.guidance import conditions
from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.diffusion.rollout import noise_keys, rollout
from diffusionrl_jax.models.mmdit.folder import load_mmdit
from diffusionrl_jax.models.stable_diffusion.folder import load_stable_diffusion

FOLDER = "asset:emoji/stable_diffusion"
FLOW_FOLDER = "asset:emoji/stable_diffusion_3"
PROMPTS = [
    "an apple next to a cake",
    "a portrait of a judge",
    "a zebra",
    "a fox on side of a book",
    "a portrait of a police officer",
    "an umbrella and a lion",
]


@pytest.fixture(scope="module")
def loaded():
    return load_stable_diffusion(assets.resolve(FOLDER))


def draw(model, params, guidance_scale, steps=20):
    """Draws `PROMPTS` without noise in the steps.

    Returns the latents that the chain begins with, for PyTorch, and the pictures.
    """
    process = make_process(model.scheduler_config, steps)
    keys = noise_keys(jax.random.split(jax.random.key(3), len(PROMPTS)), steps)

    @jax.jit
    def drawn(params, ids, empty_ids):
        encode = lambda ids: model.encode_text(params["text_encoder"], ids)
        text = conditions(encode(ids), encode(empty_ids), guidance_scale)
        denoiser, trained = params[model.denoiser_name], jnp.zeros((len(ids), 1), jnp.int32)
        latents, steps = rollout(
            *(model, process, denoiser, text, keys, trained),
            eta=0.0,
            guidance_scale=guidance_scale,
        )
        return steps.latents[:, 0], model.decode(params["vae"], latents)

    with jax.default_matmul_precision("highest"):
        latents, pictures = drawn(params, model.tokenize(PROMPTS), model.tokenize([""]))
    return torch.tensor(np.asarray(latents)), np.asarray(pictures)


SCALES = [3.0] + [
    pytest.param(scale, marks=pytest.mark.slow) for scale in (0.0, 0.5, 1.0, 1.001, 7.5, 20.0)
]


@pytest.mark.parametrize("guidance_scale", SCALES)
def test_pytorch_draws_the_same_pictures(loaded, guidance_scale):
    latents, ours = draw(*loaded, guidance_scale)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        str(assets.resolve(FOLDER)), safety_checker=None, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS,
        latents=latents,
        num_inference_steps=20,
        guidance_scale=guidance_scale,
        eta=0.0,
        output_type="np",
    ).images
    # Only float32 rounding, through 20 steps.
    assert np.abs(ours - theirs).mean() < 1e-4
    assert theirs.std() > 0.1  # pictures, not a blank canvas


@pytest.mark.slow
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_pytorch_draws_the_same_pictures_by_flow(guidance_scale):
    latents, ours = draw(*load_mmdit(assets.resolve(FLOW_FOLDER)), guidance_scale, steps=8)
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(
        str(assets.resolve(FLOW_FOLDER)),
        text_encoder_3=None,
        tokenizer_3=None,
        torch_dtype=torch.float32,
    )
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 8, "guidance_scale": guidance_scale}
    theirs = pipeline(PROMPTS, latents=latents, output_type="np", **arguments).images
    assert np.abs(ours - theirs).mean() < 1e-4
    # The prompts, and nothing but them and the noise, make pictures differ.
    assert theirs.std() > 0.1 and np.abs(theirs[0] - theirs[1]).mean() > 0.1


def test_vae_reconstructs_held_out_pictures(loaded):
    model, params = loaded
    images = np.stack(
        [pictures.random_example(np.random.default_rng((77, i))).image for i in range(256)]
    )
    images = images.astype(np.float32) / 255

    @jax.jit
    def reconstruct(vae, images):
        return model.decode(vae, model.encode(vae, images)[0])

    error = np.mean(np.square(np.asarray(reconstruct(params["vae"], images)) - images))
    assert -10 * np.log10(error) > 28  # dB of PSNR


def test_assets_are_small():
    folder = pathlib.Path(assets.resolve("asset:emoji"))
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert sum(sizes) < 15e6


@pytest.mark.parametrize(
    "path", ["emoji/nothing", "", ".", "../assets", "../../setup.cfg", "emoji/../..", "/etc/passwd"]
)
def test_what_is_not_shipped_is_named(path):
    with pytest.raises(FileNotFoundError, match=f"'asset:{re.escape(path)}' is not shipped"):
        assets.resolve(f"asset:{path}")


def test_no_link_leads_out_of_the_package(monkeypatch, tmp_path):
    package, outside = tmp_path / "package", tmp_path / "outside"
    for folder in (package / "emoji", package / "prompts", package / "words", outside):
        folder.mkdir(parents=True)
    (package / "link").symlink_to(outside)
    monkeypatch.setattr(importlib.resources, "files", lambda name: package)
    assert assets.resolve("asset:emoji").exists()
    with pytest.raises(FileNotFoundError, match="'asset:link' is not shipped"):
        assets.resolve("asset:link")


def test_vocabulary_has_what_is_held_out():
    assert len(vocabulary.OBJECTS) >= 100 and len(vocabulary.OCCUPATIONS) >= 20
    assert set(vocabulary.HELD_OUT_OBJECTS) < set(vocabulary.OBJECTS)
    assert set(vocabulary.HELD_OUT_OCCUPATIONS) < set(vocabulary.OCCUPATIONS)
    assert min(vocabulary.TONE_FREQUENCIES) >= 0.08
