"""Stable Diffusion 3's transformer against PyTorch diffusers' SD3Transformer2DModel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel

from diffusionrl_jax.models.attention import attend
from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.mmdit.build import make_joint_transformer
from diffusionrl_jax.models.mmdit.positions import TABLE
from diffusionrl_jax.models.text_encoders import Conditioning
from tests.tiny_transformers import ExactSinusoids, randomise

CONFIG = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 48,
    "caption_projection_dim": 64,
    "pooled_projection_dim": 40,
    "pos_embed_max_size": 12,
    "dual_attention_layers": [],
    "qk_norm": None,
}
KINDS = {
    "3": {},
    "3.5": {"qk_norm": "rms_norm", "num_layers": 5, "dual_attention_layers": [0, 1]},
    "dual_in_places": {"num_layers": 4, "dual_attention_layers": [1, 3]},
}
# Outputs are of order one, and float32 has 7 digits: both sum a few hundred products in other
# orders, some ten times in a row.
TOLERANCE = 1e-5


def torch_transformer(config):
    """PyTorch's network, with weights that keep numbers of order one."""
    torch.manual_seed(0)
    return randomise(SD3Transformer2DModel(**config))


def inputs(config, size=(16, 16), tokens=7, batch=2):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    latents = draw(batch, config["in_channels"], *size)
    times = np.array([0.96, 0.31], np.float32)[:batch]
    text = Conditioning(
        draw(batch, tokens, config["joint_attention_dim"]),
        draw(batch, config["pooled_projection_dim"]),
    )
    return latents, times, text


def torch_output(network, latents, times, text):
    with torch.no_grad():
        return network(
            torch.from_numpy(latents),
            timestep=1000 * torch.from_numpy(times),
            encoder_hidden_states=torch.from_numpy(np.asarray(text.states)),
            pooled_projections=torch.from_numpy(np.asarray(text.pooled)),
        ).sample.numpy()


def of_torch(config, size=(16, 16), **options):
    """(PyTorch's network, ours, our parameters of its state)."""
    network = torch_transformer(config)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    ours = make_joint_transformer(config, state[TABLE], size, jnp.float32, **options)
    return network, ours, weights.to_flax(state, ours.template(), ignore=(TABLE,))


@pytest.mark.parametrize(
    "kind", ["3", "3.5", pytest.param("dual_in_places", marks=pytest.mark.slow)]
)
def test_output_is_pytorchs(kind):
    config, size = CONFIG | KINDS[kind], (8, 20) if kind == "3" else (16, 16)
    network, ours, params = of_torch(config, size)
    arguments = inputs(config, size)
    output = jax.jit(functools.partial(ours.denoise, attend=attend))(params, *arguments)
    expected = torch_output(network, *arguments)
    assert 1 < np.abs(expected).max() < 10
    assert np.abs(output - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_state_dict_round_trip_is_exact():
    config = CONFIG | KINDS["3.5"]
    network, _, params = of_torch(config)
    state = weights.to_pytorch(params)
    theirs = dict(network.state_dict())
    del theirs[TABLE]
    assert state.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(state[name], tensor.numpy())
    stacks = {name for name in params if "_to_" in name}
    assert stacks == {"transformer_blocks_0_to_1", "transformer_blocks_2_to_3"}


@pytest.mark.slow
def test_several_texts_of_a_sample_are_rows():
    network, ours, params = of_torch(CONFIG)
    latents, times, text = inputs(CONFIG)
    many = jax.tree.map(lambda array: np.concatenate([array, array[::-1] + 1]), text)
    # Two of the first sample's, then two of the second one's.
    output = jax.jit(functools.partial(ours.denoise, attend=attend))(params, latents, times, many)
    expected = torch_output(network, np.repeat(latents, 2, 0), np.repeat(times, 2), many)
    assert np.abs(output - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_equal_tokens_are_one_token_with_the_logarithm_of_their_number():
    network, ours, params = of_torch(CONFIG)
    latents, times, text = inputs(CONFIG)
    zeros = lambda count: np.zeros((2, count, text.states.shape[-1]), np.float32)
    with_tokens = lambda count: Conditioning(
        np.concatenate([text.states, zeros(count)], axis=1), text.pooled
    )
    bias = np.array([0] * 7 + [np.log(256)], np.float32)
    denoise = jax.jit(functools.partial(ours.denoise, attend=attend, key_bias=bias))
    expected = torch_output(network, latents, times, with_tokens(256))
    output = denoise(params, latents, times, with_tokens(1))
    assert np.abs(output - expected).max() <= TOLERANCE * np.abs(expected).max()
    # They matter: without the logarithm, and without the tokens, pictures are others.
    for count in (0, 1):
        others = torch_output(network, latents, times, with_tokens(count))
        assert np.abs(others - expected).max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_gradient_is_pytorchs(remat):
    config = CONFIG | KINDS["3.5"]
    network, ours, params = of_torch(config, remat=remat)
    latents, times, text = inputs(config)
    direction = np.random.default_rng(1).standard_normal(latents.shape).astype(np.float32)
    loss = lambda params: jnp.sum(direction * ours.denoise(params, latents, times, text, attend))
    found = weights.to_pytorch(jax.jit(jax.grad(loss))(params))

    network.time_text_embed.time_proj = ExactSinusoids()
    output = network(
        torch.from_numpy(latents),
        timestep=1000 * torch.from_numpy(times),
        encoder_hidden_states=torch.from_numpy(text.states),
        pooled_projections=torch.from_numpy(text.pooled),
    ).sample
    (output * torch.from_numpy(direction)).sum().backward()
    sizes = []
    for name, parameter in network.named_parameters():
        if parameter.grad is None:  # Nothing becomes of the last block's text.
            assert not found[name].any() and name.startswith("transformer_blocks.4"), name
            continue
        theirs = parameter.grad.numpy()
        sizes.append(np.abs(theirs).max())
        assert np.abs(found[name] - theirs).max() <= 2e-5 * (1 + sizes[-1]), name
    assert max(sizes) > 10
