"""FLUX's transformer against PyTorch diffusers' FluxTransformer2DModel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from diffusionrl_jax.models.attention import attend
from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.mmdit.build import make_flux_transformer
from diffusionrl_jax.models.text_encoders import Conditioning
from tests.tiny_transformers import FLUX, ExactSinusoids, randomise

# Outputs are of order one, and float32 has 7 digits: both sum a few hundred products in other
# orders, some ten times in a row.
TOLERANCE = 1e-5


def of_torch(**changes):
    """(PyTorch's network, ours, our parameters of its state)."""
    config = FLUX | changes
    torch.manual_seed(0)
    network = randomise(FluxTransformer2DModel(**config))
    network.time_text_embed.time_proj = ExactSinusoids()
    ours = make_flux_transformer(config, jnp.float32, guidance=3.5)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return network, ours, weights.to_flax(state, ours.template())


@pytest.mark.parametrize(
    "guidance_embeds",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["dev", "schnell"],
)
def test_output_is_pytorchs(guidance_embeds):
    network, ours, params = of_torch(guidance_embeds=guidance_embeds)
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    latents, times = draw(2, 16, 8, 12), np.array([0.96, 0.31], np.float32)
    text = Conditioning(draw(2, 7, 48), draw(2, 24))
    output = jax.jit(functools.partial(ours.denoise, attend=attend))(params, latents, times, text)
    packed = FluxPipeline._pack_latents(torch.from_numpy(latents), 2, 16, 8, 12)
    places = FluxPipeline._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32)
    with torch.no_grad():
        expected = network(
            packed,
            timestep=torch.from_numpy(times),
            guidance=torch.full([2], 3.5) if guidance_embeds else None,
            encoder_hidden_states=torch.from_numpy(text.states),
            pooled_projections=torch.from_numpy(text.pooled),
            txt_ids=torch.zeros(7, 3),
            img_ids=places,
        ).sample
    # In pixels of a VAE that halves sides three times.
    expected = FluxPipeline._unpack_latents(expected, 64, 96, 8).numpy()
    assert 1 < np.abs(expected).max() < 10
    assert np.abs(output - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_state_dict_round_trip_is_exact():
    network, _, params = of_torch()
    state = weights.to_pytorch(params)
    theirs = network.state_dict()
    assert state.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(state[name], tensor.numpy())
