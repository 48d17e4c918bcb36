"""Folders of Stable Diffusion 3 and FLUX against PyTorch's pipelines."""

import jax
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from PIL import Image
from safetensors.numpy import load_file
from transformers import T5TokenizerFast

from diffusionrl_jax.diffusion.pipeline import Policy
from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.diffusion.rollout import noise_keys
from diffusionrl_jax.diffusion.sampler import Sampler
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.experiments.config import get_config
from diffusionrl_jax.models.families import describe_model, load_model, save_model
from diffusionrl_jax.monitoring.images import image_grid, write_png
from tests.processes import finish

PROMPTS = ["an apple", "a cat that reads a long book"]


KINDS = {"t5": {}, "without": {"t5": False}, "flux": {"flux": True}}


def open_pytorch(folder, t5=True, flux=False):
    kind, name = StableDiffusion3Pipeline, "tokenizer_3"
    if flux:
        kind, name = FluxPipeline, "tokenizer_2"
    if t5:
        # Without the field, PyTorch reads tokenizer.json, and needs no spiece.model.
        given = {name: T5TokenizerFast.from_pretrained(folder / name, add_prefix_space=None)}
    else:
        given = {"text_encoder_3": None, name: None}
    pipeline = kind.from_pretrained(folder, **given)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def first_noise(shape, seed, count, steps):
    """The noise that `Sampler` starts from."""
    streams = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))
    keys = noise_keys(streams(np.arange(count)), steps)
    return np.array(jax.vmap(lambda key: jax.random.normal(key, shape))(keys[:, steps]))


@pytest.mark.parametrize(
    ("kind", "steps", "scale"),
    [
        pytest.param("t5", 4, 3.0, marks=pytest.mark.slow),
        pytest.param("without", 4, 3.0, marks=pytest.mark.slow),
        # FLUX is given the scale of its guidance, and sees each sample once.
        pytest.param("flux", 3, 1.0, marks=pytest.mark.slow),
    ],
)
def test_pictures_are_pytorchs(make_folder, kind, steps, scale):
    options = KINDS[kind]
    folder = make_folder(**options)
    model, params = load_model(str(folder), size=(24, 16))
    pipeline = open_pytorch(folder, **options)
    assert model.pipeline_name == type(pipeline).__name__
    mesh = make_mesh(devices=jax.devices()[:1])
    config = get_config().sampler
    config.eta, config.guidance_scale = 0.0, scale
    process = make_process(model.scheduler_config, steps)
    sampler = Sampler(Policy(model, process, params, mesh), config, len(PROMPTS))
    pictures = sampler(params, PROMPTS, seed=1)

    latents = torch.from_numpy(first_noise(model.latent_shape, 1, len(PROMPTS), steps))
    arguments = {"num_inference_steps": steps, "output_type": "np", "guidance_scale": scale}
    arguments |= dict(zip(("height", "width"), model.image_shape, strict=False))
    if kind == "flux":
        arguments["guidance_scale"] = 3.5
        latents = FluxPipeline._pack_latents(latents, 2, *model.latent_shape)
    expected = pipeline(PROMPTS, latents=latents, **arguments).images
    assert pictures.shape == expected.shape == (2, *model.image_shape)
    assert expected.std() > 0.05 and np.abs(expected[0] - expected[1]).mean() > 0.05
    assert np.abs(pictures - expected).mean() < 1e-5
    assert np.abs(pictures - expected).max() < 1e-4


@pytest.mark.slow
def test_the_program_draws_pytorchs_pictures(make_folder, start, tmp_path):
    folder, steps = make_folder(), 3
    flags = {
        "model": folder,
        "prompts": "; ".join(PROMPTS),
        "output": tmp_path / "drawn.png",
        "steps": steps,
        "eta": 0,
        "images_per_prompt": 1,
        "seed": 1,
    }
    status, output = finish(start("sample", *(f"--{name}={flags[name]}" for name in flags)))
    assert status == 0, output
    latents = torch.from_numpy(first_noise((16, 8, 8), 1, len(PROMPTS), steps))
    # Both take the pipeline's own scale of guidance.
    expected = open_pytorch(folder)(
        PROMPTS, latents=latents, num_inference_steps=steps, output_type="np"
    ).images
    grid = image_grid(expected, 1, row_captions=PROMPTS, scale=96 // 16)
    write_png(tmp_path / "expected.png", grid)
    drawn, wanted = (
        np.asarray(Image.open(tmp_path / name), np.float32) / 255
        for name in ("drawn.png", "expected.png")
    )
    assert np.abs(drawn - wanted).mean() < 1e-3
    assert drawn.std() > 0.05


def states(folder):
    """All tensors of a folder, by file."""
    return {
        str(file.relative_to(folder)): load_file(file) for file in folder.rglob("*.safetensors")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_export_of_an_import_is_bit_identical(make_folder, kind, tmp_path):
    folder = make_folder(**KINDS[kind])
    model, params = load_model(str(folder))
    save_model(tmp_path / "export", model, params, "float32")
    read, written = states(folder), states(tmp_path / "export")
    assert read.keys() == written.keys() and len(read) == (5 if kind == "t5" else 4)
    for file, tensors in read.items():
        assert tensors.keys() == written[file].keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(written[file][name], tensor, err_msg=name)
    again, _ = load_model(str(tmp_path / "export"))
    assert again.same_networks(model) and model.same_networks(again)
    # PyTorch opens it, and has the same network.
    one, other = (
        open_pytorch(path, **KINDS[kind]).transformer for path in (folder, tmp_path / "export")
    )
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_shards_in_half_precision_are_read(make_folder, tmp_path):
    pipeline = open_pytorch(make_folder()).to(torch.bfloat16)
    pipeline.save_pretrained(tmp_path / "sharded", variant="fp16", max_shard_size="60KB")
    assert list((tmp_path / "sharded/transformer").glob("*-00002-of-*"))
    whole, params = load_model(str(make_folder()))
    model, halved = load_model(str(tmp_path / "sharded"))
    assert model.networks == whole.networks
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(halved), strict=True):
        np.testing.assert_allclose(other, one, rtol=2**-8)


@pytest.mark.parametrize("kind", ["t5", "flux"])
def test_description_counts_what_there_is(make_folder, kind):
    folder = make_folder(**KINDS[kind])
    _, params = load_model(str(folder))
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    found = describe_model(str(folder), (16, 16))
    assert found.denoiser == count(params["transformer"])
    assert found.vae == count(params["vae"])
    assert found.text_encoder == count(params["text_encoder"])
    assert (found.latent, found.image) == (16 * 8 * 8, 3 * 16 * 16)
    assert found.text == ((12 + 256) * 48 + 36 if kind == "t5" else 512 * 48 + 24)
