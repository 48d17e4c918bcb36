"""The emoji world's Stable Diffusion 3 has PyTorch's sizes, and draws what PyTorch draws."""

import json

import diffusers
import jax
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from diffusionrl_jax import assets
from diffusionrl_jax.emoji_world import emoji_model, flow_model
from diffusionrl_jax.models.mmdit.folder import load_mmdit, save_mmdit
from tests.emoji_world.test_shipped import FOLDER, PROMPTS, draw


def numel(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.slow
def test_networks_have_the_sizes_of_pytorchs():
    model, params = flow_model.init_flow_model(FOLDER, jax.random.key(0))
    configs = model.configs
    with torch.device("meta"):
        theirs = {
            "transformer": diffusers.SD3Transformer2DModel(**configs["transformer"]),
            "vae": diffusers.AutoencoderKL.from_config(dict(configs["vae"])),
            **{
                name: CLIPTextModelWithProjection(CLIPTextConfig(**configs[name]))
                for name in ("text_encoder", "text_encoder_2")
            },
        }
    ours = {name: params[name] for name in ("transformer", "vae")} | params["text_encoder"]
    assert ours.keys() == theirs.keys()
    for name, tree in ours.items():
        assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == numel(theirs[name])
    # It draws in the other model's latents, and reads its words.
    assert model.latent_shape == (4, 8, 8)
    shipped = json.loads((assets.resolve(FOLDER) / "vae" / "config.json").read_text())
    assert model.scaling_factor == shipped["scaling_factor"]
    assert model.tokenize(["a fox"]).shape[1] % emoji_model.TOKENS == 0


@pytest.mark.slow
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_pytorch_draws_the_same_pictures_by_flow(tmp_path, guidance_scale):
    """With random weights, and the VAE of the other model."""
    made, params = flow_model.init_flow_model(FOLDER, jax.random.key(0))
    save_mmdit(tmp_path, made, params, "float32")
    latents, ours = draw(*load_mmdit(tmp_path), guidance_scale, steps=8)
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(
        str(tmp_path), text_encoder_3=None, tokenizer_3=None, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 8, "guidance_scale": guidance_scale}
    theirs = pipeline(PROMPTS, latents=latents, output_type="np", **arguments).images
    assert np.abs(ours - theirs).mean() < 1e-4
    # The prompts, and nothing but them and the noise, make pictures differ.
    assert theirs.std() > 0.1 and np.abs(theirs[0] - theirs[1]).mean() > 0.1
