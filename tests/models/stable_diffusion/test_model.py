"""The networks against PyTorch diffusers and transformers, and the folder between the two."""

import copy
import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch.utils._pytree import tree_map
from transformers import CLIPTextModel

from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.folders.networks import RENAMES, split_networks
from diffusionrl_jax.models.stable_diffusion.folder import (
    load_stable_diffusion,
    save_stable_diffusion,
)
from diffusionrl_jax.models.text_encoders import Conditioning

TOLERANCE = 1e-5


def perturbed(params, seed=0):
    """Zero biases and unit scales would hide a mapping that mixes them up."""
    leaves, structure = jax.tree.flatten(jax.device_get(params))
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        structure,
        [leaf + 0.05 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves],
    )


@pytest.fixture(
    scope="module", params=[pytest.param("tiny", marks=pytest.mark.slow), "tiny_2", "tiny_xl"]
)
def pair(request, tmp_path_factory):
    """(model, params, PyTorch pipeline) with the same weights; the pipeline read our folder."""
    model, params = request.getfixturevalue(request.param)
    params = {name: perturbed(tree) for name, tree in params.items()}
    folder = tmp_path_factory.mktemp(request.param)
    save_stable_diffusion(folder, model, params, dtype="float32")
    pipeline = DiffusionPipeline.from_pretrained(folder)
    return model, params, pipeline


def difference(ours, theirs):
    return np.abs(np.asarray(ours) - theirs.detach().numpy()).max()


def test_unet_agrees_with_pytorch(pair):
    model, params, pipeline = pair
    rng = np.random.default_rng(0)
    width = model.configs["unet"]["cross_attention_dim"]
    latents = rng.standard_normal((2, *model.latent_shape)).astype(np.float32)
    states = rng.standard_normal((2, 12, width)).astype(np.float32)
    timesteps = np.array([3, 981], np.int32)
    text, added = states, {}
    if model.text_encoder_2 is not None:
        pooled = rng.standard_normal((2, 24)).astype(np.float32)
        time_ids = np.float32([[1024, 768, 8, 16, 512, 640], [16, 16, 0, 0, 16, 16]])
        text = Conditioning(states, pooled, time_ids)
        conditions = {"text_embeds": pooled, "time_ids": time_ids}
        conditions = {name: torch.from_numpy(array) for name, array in conditions.items()}
        added = {"added_cond_kwargs": conditions}
    ours = jax.jit(model.denoise)(params["unet"], latents, timesteps, text)
    arguments = [torch.from_numpy(array) for array in (latents, timesteps, states)]
    # In double precision: PyTorch's own float32 is up to 9e-6 from it on some CPUs.
    to_double = lambda tensor: tensor.double() if tensor.is_floating_point() else tensor
    arguments, added = tree_map(to_double, (arguments, added))
    with torch.no_grad():
        theirs = copy.deepcopy(pipeline.unet).double()(*arguments, **added).sample
    assert ours.dtype == jnp.float32
    assert np.abs(theirs.numpy()).max() > 0.1
    assert difference(ours, theirs) <= TOLERANCE


PROMPTS = ["an apple", "a portrait of a judge, and more than fits", ""]


def test_text_encoder_agrees_with_pytorch(pair):
    model, params, pipeline = pair
    ids = model.tokenize(PROMPTS)
    tokenizers = [pipeline.tokenizer]
    if model.tokenizer_2 is not None:
        tokenizers.append(pipeline.tokenizer_2)
    reference = [
        tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="np").input_ids
        for tokenizer in tokenizers
    ]
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, np.concatenate(reference, axis=1))
    ours = jax.jit(model.encode_text)(params["text_encoder"], ids)
    empty = jax.jit(model.encode_empty)(params["text_encoder"], ids[2:])
    with torch.no_grad():
        theirs = pipeline.encode_prompt(
            PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
        )
    if model.text_encoder_2 is None:
        assert difference(ours, theirs[0]) <= TOLERANCE
        assert difference(empty, theirs[1][:1]) <= TOLERANCE
        return
    states, negative_states, pooled, negative_pooled = theirs
    # A prompt that is empty is encoded; what prompts are guided away from is zeros.
    assert difference(ours.states, states) <= TOLERANCE
    assert difference(ours.pooled, pooled) <= TOLERANCE
    assert difference(empty.states, negative_states[:1]) == 0
    assert difference(empty.pooled, negative_pooled[:1]) == 0
    np.testing.assert_array_equal(ours.time_ids, 3 * [[16, 16, 0, 0, 16, 16]])


def test_empty_prompt_of_xl_is_encoded_where_the_folder_says_so(tiny_xl):
    model, params = tiny_xl
    params = {name: perturbed(tree) for name, tree in params.items()}
    pipeline = {"force_zeros_for_empty_prompt": False}
    encoding = dataclasses.replace(model, configs={**model.configs, "pipeline": pipeline})
    text = jax.jit(encoding.encode_empty)(params["text_encoder"], model.tokenize([""]))
    assert jnp.abs(text.states).min() > 0


# A width of 4 equals the number of channels, where FlaxAutoencoderKL guesses the layout wrongly.
@pytest.mark.parametrize("size", [4, 8])
def test_decoder_agrees_with_pytorch(pair, size):
    model, params, pipeline = pair
    latents = np.random.default_rng(1).standard_normal((2, 4, size, size)).astype(np.float32)
    latents = 0.2 * latents
    ours = jax.jit(model.decode)(params["vae"], latents)
    with torch.no_grad():
        pixels = pipeline.vae.decode(torch.from_numpy(latents) / model.scaling_factor).sample
    theirs = ((pixels + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1)
    assert difference(ours, theirs) <= TOLERANCE
    assert ours.shape == (2, 2 * size, 2 * size, 3)
    if size == model.latent_shape[1]:
        assert ours.shape[1:] == model.image_shape


def test_encoder_agrees_with_pytorch(pair):
    model, params, pipeline = pair
    images = np.random.default_rng(2).random((2, 16, 16, 3)).astype(np.float32)
    mean, deviation = jax.jit(model.encode)(params["vae"], images)
    with torch.no_grad():
        pixels = torch.from_numpy(2 * images - 1).permute(0, 3, 1, 2)
        posterior = pipeline.vae.encode(pixels).latent_dist
    assert mean.shape == (2, *model.latent_shape)
    assert difference(mean, model.scaling_factor * posterior.mean) <= TOLERANCE
    assert difference(deviation, model.scaling_factor * posterior.std) <= TOLERANCE


def test_folder_keeps_every_weight_in_pytorch(pair):
    model, params, pipeline = pair
    for name, tree in split_networks(params).items():
        state = weights.to_pytorch(tree, rename=RENAMES[name])
        theirs = getattr(pipeline, name).state_dict()
        assert {key for key in theirs if "position_ids" not in key} == set(state)
        for key, value in state.items():
            np.testing.assert_array_equal(value, theirs[key].numpy())
    for field in ("beta_schedule", "prediction_type", "steps_offset"):
        assert pipeline.scheduler.config[field] == model.scheduler_config[field]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_folder_round_trip(tiny, tmp_path, dtype):
    model, params = tiny
    save_stable_diffusion(tmp_path, model, params, dtype)
    loaded, loaded_params = load_stable_diffusion(tmp_path)

    def rounded(leaf):
        return np.asarray(leaf).astype(jnp.dtype(dtype)).astype(np.float32)

    jax.tree.map(np.testing.assert_array_equal, loaded_params, jax.tree.map(rounded, dict(params)))
    assert loaded.configs["unet"]["block_out_channels"] == [32, 64]
    assert loaded.scheduler_config["steps_offset"] == 1
    np.testing.assert_array_equal(loaded.tokenize(["a cake"]), model.tokenize(["a cake"]))
    # transformers believes config.json where it is to choose the precision.
    save_stable_diffusion(tmp_path / "again", loaded, loaded_params, "float32")
    for folder, stored in ((tmp_path, dtype), (tmp_path / "again", "float32")):
        opened = CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype="auto")
        assert opened.dtype == getattr(torch, stored)


def test_loads_what_pytorch_saved(pair, tmp_path):
    model, params, pipeline = pair
    pipeline.save_pretrained(tmp_path)
    _, loaded = load_stable_diffusion(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_bfloat16_compute_keeps_float32_parameters(tiny, tmp_path):
    model, params = tiny
    save_stable_diffusion(tmp_path, model, params, "float32")
    half, half_params = load_stable_diffusion(tmp_path, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half_params)} == {np.dtype(np.float32)}
    ids = model.tokenize(["a cake"])
    latents = jnp.zeros((1, *model.latent_shape))
    text = jax.eval_shape(half.encode_text, half_params["text_encoder"], ids)
    assert text.dtype == jnp.bfloat16
    program = str(
        jax.make_jaxpr(half.denoise)(half_params["unet"], latents, jnp.array([500]), text)
    )
    convolutions = re.findall(r":(\w+)\[[\d,]+\] = conv_general_dilated", program)
    assert set(convolutions) == {"bf16"}
    outputs = [
        jax.eval_shape(half.denoise, half_params["unet"], latents, jnp.array([500]), text),
        jax.eval_shape(half.decode, half_params["vae"], latents),
        *jax.eval_shape(half.encode, half_params["vae"], jnp.zeros((1, 16, 16, 3))),
    ]
    assert {output.dtype for output in outputs} == {np.dtype(np.float32)}


def test_incomplete_folders(tiny, tmp_path):
    model, params = tiny
    with pytest.raises(FileNotFoundError, match="give a diffusers folder"):
        load_stable_diffusion(tmp_path / "nowhere")
    save_stable_diffusion(tmp_path, model, params)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    pickled = file.with_suffix(".bin")
    file.rename(pickled)
    with pytest.raises(FileNotFoundError, match=r"(?s)diffusion_pytorch_model.bin.*save_file"):
        load_stable_diffusion(tmp_path)
    pickled.unlink()
    with pytest.raises(FileNotFoundError, match="incomplete"):
        load_stable_diffusion(tmp_path)
    config = tmp_path / "vae" / "config.json"
    config.write_text(config.read_text()[:-9])
    with pytest.raises(ValueError, match="not valid JSON"):
        load_stable_diffusion(tmp_path)
    config.unlink()
    with pytest.raises(FileNotFoundError, match="vae/config.json"):
        load_stable_diffusion(tmp_path)


def test_incomplete_folders_of_xl(tiny_xl, tmp_path):
    save_stable_diffusion(tmp_path, *tiny_xl)
    (tmp_path / "model_index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"model_index.json does not exist"):
        load_stable_diffusion(tmp_path)
    shutil.rmtree(tmp_path / "text_encoder")
    with pytest.raises(ValueError, match="only has XL.s second text encoder: refiners"):
        load_stable_diffusion(tmp_path)


def test_weights_of_another_architecture(tiny, tmp_path):
    model, params = tiny
    save_stable_diffusion(tmp_path, model, params)
    config = tmp_path / "unet" / "config.json"
    changed = {**json.loads(config.read_text()), "layers_per_block": 2}
    config.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="unet lacks 'down_blocks"):
        load_stable_diffusion(tmp_path)
