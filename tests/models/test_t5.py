"""The T5 encoder against transformers' T5EncoderModel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models import t5
from diffusionrl_jax.models.folders import weights

CONFIG = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_heads": 4,
    "num_layers": 3,
    "vocab_size": 60,
    "feed_forward_proj": "gated-gelu",
}


def torch_encoder():
    torch.manual_seed(0)
    network = T5EncoderModel(T5Config(**CONFIG)).eval()
    for parameter in network.parameters():
        noise = torch.randn_like(parameter)
        is_matrix = parameter.ndim > 1
        parameter.data = noise * parameter.shape[-1] ** -0.5 if is_matrix else 1 + 0.1 * noise
    # Logits are not scaled, and the embedding is not multiplied by anything.
    network.shared.weight.data *= 32**0.5
    return network


@pytest.fixture(scope="module")
def both():
    network = torch_encoder()
    encoder = t5.make_t5_encoder(CONFIG, "config.json", jnp.float32)
    state = {
        t5.stored_t5_name(name): tensor.numpy() for name, tensor in network.state_dict().items()
    }
    return network, encoder, weights.to_flax(state, encoder.template(), rename=t5.t5_name)


@pytest.mark.parametrize("tokens", [7, 150])
def test_states_are_pytorchs(both, tokens):
    network, encoder, params = both
    ids = np.random.default_rng(0).integers(0, 60, (2, tokens)).astype(np.int32)
    with torch.no_grad():
        expected = network(torch.from_numpy(ids)).last_hidden_state.numpy()
    output = jax.jit(encoder.encode)(params, ids)
    assert np.abs(expected).max() > 2
    assert np.abs(output - expected).max() <= 3e-6 * np.abs(expected).max()


@pytest.mark.parametrize(("tokens", "buckets", "farthest"), [(300, 32, 128), (40, 8, 20)])
def test_buckets_are_pytorchs(tokens, buckets, farthest):
    places = torch.arange(tokens)
    ahead = places[None] - places[:, None]
    theirs = T5Attention._relative_position_bucket(ahead, True, buckets, farthest)
    np.testing.assert_array_equal(t5.distance_buckets(tokens, buckets, farthest), theirs.numpy())


def test_names_are_those_of_the_file(both):
    network, _, params = both
    found = weights.to_pytorch(params, rename=t5.t5_name)
    theirs = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    del theirs["encoder.embed_tokens.weight"]  # The same tensor as shared.weight.
    assert found.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_other_encoders_are_refused():
    with pytest.raises(UserError, match="config.json: feed_forward_proj is 'relu'.*T5 1.1"):
        t5.make_t5_encoder({**CONFIG, "feed_forward_proj": "relu"}, "config.json", jnp.float32)
    with pytest.raises(UserError, match="num_heads is 'x'"):
        t5.make_t5_encoder({**CONFIG, "num_heads": "x"}, "config.json", jnp.float32)
