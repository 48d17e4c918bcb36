"""The emoji world's Stable Diffusion 3 has PyTorch's sizes."""

import json

import diffusers
import jax
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from diffusionrl_jax import assets
from diffusionrl_jax.emoji_world import emoji_model, flow_model
from tests.emoji_world.test_shipped import FOLDER


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
