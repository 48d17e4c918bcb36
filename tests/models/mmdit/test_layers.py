"""The transformers' layers against PyTorch's and diffusers'."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import (
    CombinedTimestepGuidanceTextProjEmbeddings,
    CombinedTimestepTextProjEmbeddings,
    PatchEmbed,
)
from diffusers.models.normalization import AdaLayerNormContinuous

from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.mmdit import layers
from tests.tiny_transformers import ExactSinusoids, randomise

# Numbers of order one, of sums of at most 256 products in float32.
TOLERANCE = 1e-5
WIDTH, POOLED = 16, 12


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def of_torch(network, shapes):
    """PyTorch's network with random weights, and these as ours."""
    torch.manual_seed(0)
    randomise(network)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return network, weights.to_flax(state, shapes)


def close(found, expected):
    expected = expected.detach().numpy()
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


# A scale of whose sines float32 knows as many digits as of those of the times.
@pytest.mark.parametrize("guidance", [None, 0.25])
def test_the_condition_is_diffusers(guidance):
    """Of two times with two texts each; a SiLU comes before whatever takes it."""
    kind = CombinedTimestepTextProjEmbeddings
    if guidance is not None:
        kind = CombinedTimestepGuidanceTextProjEmbeddings
    shapes = layers.condition_shapes(WIDTH, POOLED, is_guided=guidance is not None)
    network, params = of_torch(kind(WIDTH, POOLED), shapes)
    network.time_proj = ExactSinusoids()
    times, pooled = np.array([0.96, 0.31], np.float32), draw(4, POOLED)
    inputs = [1000 * torch.from_numpy(times).repeat_interleave(2), torch.from_numpy(pooled)]
    if guidance is not None:
        inputs.insert(1, 1000 * torch.full([4], guidance))
    embed = jax.jit(functools.partial(layers.embed_condition, guidance=guidance))
    close(embed(params, times, pooled), torch.nn.functional.silu(network(*inputs)))


def test_the_mlp_is_diffusers():
    network = FeedForward(WIDTH, WIDTH, activation_fn="gelu-approximate")
    network, params = of_torch(network, layers.mlp_shapes(WIDTH))
    values = draw(2, 5, WIDTH)
    close(jax.jit(layers.mlp)(params, values), network(torch.from_numpy(values)))


def test_the_exit_is_diffusers():
    """Its norm takes the condition before the SiLU, which is ours to have applied."""
    norm = AdaLayerNormContinuous(WIDTH, WIDTH, elementwise_affine=False, eps=1e-6)
    network = torch.nn.ModuleDict({"norm_out": norm, "proj_out": torch.nn.Linear(WIDTH, 8)})
    shapes = {
        "norm_out": {"linear": layers.linear_shapes(WIDTH, 2 * WIDTH)},
        "proj_out": layers.linear_shapes(WIDTH, 8),
    }
    network, params = of_torch(network, shapes)
    tokens, condition = draw(2, 5, WIDTH), draw(2, WIDTH)
    theirs = norm(torch.from_numpy(tokens), torch.from_numpy(condition))
    found = jax.jit(layers.leave)(params, (tokens, jax.nn.silu(condition)))
    close(found, network["proj_out"](theirs))


def test_patches_are_embedded_as_by_a_convolution():
    network = PatchEmbed(8, 6, 2, in_channels=4, embed_dim=WIDTH, pos_embed_type=None)
    shapes = {
        "proj": {
            "kernel": jax.ShapeDtypeStruct((2, 2, 4, WIDTH), jnp.float32),
            "bias": jax.ShapeDtypeStruct((WIDTH,), jnp.float32),
        }
    }
    network, params = of_torch(network, shapes)
    latents = draw(2, 4, 8, 6)
    found = layers.patch_embedding(params["proj"], layers.patches(latents, 2))
    close(found, network(torch.from_numpy(latents)))


def test_packed_patches_are_those_of_flux():
    latents = draw(2, 4, 8, 6)
    packed = FluxPipeline._pack_latents(torch.from_numpy(latents), 2, 4, 8, 6).numpy()
    np.testing.assert_array_equal(layers.patches(latents, 2, layers.PACKED_ORDER), packed)


@pytest.mark.parametrize("order", [layers.KERNEL_ORDER, layers.PACKED_ORDER])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_patches_are_joined_as_they_were_cut(order, size):
    latents = draw(2, 5, 6, 12)
    cut = layers.patches(latents, size, order)
    assert cut.shape == (2, 72 // size**2, 5 * size**2)
    np.testing.assert_array_equal(layers.join_patches(cut, size, (5, 6, 12), order), latents)


def test_heads_are_neighbouring_numbers():
    values = draw(2, 5, WIDTH)
    heads = layers.split_heads(values, 4)
    np.testing.assert_array_equal(heads[:, :, 1], values[:, :, 4:8])
    np.testing.assert_array_equal(layers.merge_heads(heads), values)
