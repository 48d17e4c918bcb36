"""What is said of transformers before they are opened, against PyTorch and JAX."""

import jax
import jax.numpy as jnp
import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from diffusionrl_jax.models.families import describe_model
from diffusionrl_jax.models.mmdit import description, published
from diffusionrl_jax.models.mmdit.blocks import block_shapes, joint_block
from diffusionrl_jax.models.parameters import count

FLUX = "black-forest-labs/FLUX.1-dev"
MEDIUM = "stabilityai/stable-diffusion-3.5-medium"
CLASSES = {
    "StableDiffusion3Pipeline": SD3Transformer2DModel,
    "FluxPipeline": FluxTransformer2DModel,
}


def numel(network):
    return sum(parameter.numel() for parameter in network.parameters())


def on_meta(name):
    """PyTorch's transformer of a published model, without memory for its weights."""
    configs = published.CONFIGS[name]
    with torch.device("meta"):
        return CLASSES[configs["pipeline"]["_class_name"]](**configs["transformer"])


def forward(network, config, words, latents):
    """One sample's forward pass; pictures are square."""
    text = torch.empty(1, words, config["joint_attention_dim"])
    fields = {"encoder_hidden_states": text, "timestep": torch.empty(1)}
    fields["pooled_projections"] = torch.empty(1, config["pooled_projection_dim"])
    if "pos_embed_max_size" in config:
        network(torch.empty(1, config["in_channels"], latents, latents), **fields)
        return
    tokens = (latents // 2) ** 2
    guidance = torch.empty(1) if config["guidance_embeds"] else None
    places = {"img_ids": torch.empty(tokens, 3), "txt_ids": torch.empty(words, 3)}
    network(torch.empty(1, tokens, config["in_channels"]), **fields, **places, guidance=guidance)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in (MEDIUM, FLUX) else pytest.mark.slow)
        for name in published.CONFIGS
    ],
)
def test_published_sizes_and_operations_are_pytorchs(name):
    network, config = on_meta(name), published.CONFIGS[name]["transformer"]
    assert numel(network) == published.PARAMETERS[name]["transformer"]
    described = describe_model(name, (512, 512))
    assert count(described.denoiser_shapes()) == described.denoiser == numel(network)
    words = 512 if "FLUX" in name else 77 + 256
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward(network, config, words, 64)
    # The embeddings of the time and of the pooled text are left out, and what comes after the
    # last block: 0.2% of the smallest.
    operations = described.network.operations
    assert operations == pytest.approx(counter.get_total_flops(), rel=3e-3)
    blocks = [block for part in described.network.parts for block in part]
    kernels = sum(block.parameters for block in blocks)
    assert kernels == pytest.approx(numel(network), rel=0.03)


@pytest.mark.parametrize(("name", "of_clip"), [(MEDIUM, 77), (FLUX, 0)])
def test_so_many_tokens_of_t5_as_are_asked_for(name, of_clip):
    network, config = on_meta(name), published.CONFIGS[name]["transformer"]
    described, usual = (describe_model(name, (512, 512), tokens) for tokens in (96, None))
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward(network, config, of_clip + 96, 64)
    assert described.network.operations == pytest.approx(counter.get_total_flops(), rel=4e-3)
    assert described.text == (of_clip + 96) * 4096 + config["pooled_projection_dim"] < usual.text


@jax.custom_vjp
def attend(query, key, value):
    """Attention in name only, that keeps for its gradient what the kernel keeps."""
    return query * key[:, : query.shape[1]] * value[:, : query.shape[1]]


def attend_forward(*arrays):
    seen = attend(*arrays)
    return seen, (*arrays, seen, seen[..., 0].astype(jnp.float32))


attend.defvjp(attend_forward, lambda kept, gradient: kept[:3])


@pytest.mark.parametrize(
    ("kind", "stacked"),
    [
        ({}, description.STACKED),
        ({"is_dual": True}, description.STACKED_OF_DUAL),
        ({"is_last": True}, description.STACKED_OF_LAST),
    ],
    ids=["both", "dual", "last"],
)
def test_what_a_block_stores_for_its_gradient_is_what_jax_keeps(kind, stacked):
    """As in Stable Diffusion 3 at 512 pixels, with 4 heads of 16 numbers."""
    heads, size, places, words = 4, 16, 1024, 333
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16)
    params = block_shapes(heads, size, normalises=True, **kind)
    params = jax.tree.map(lambda leaf: shape(*leaf.shape), params)
    width = heads * size

    def block(params, carry):
        picture, text, condition = carry
        return joint_block(params, (picture, text), condition, heads, attend, attend)

    carry = shape(1, places, width), shape(1, words, width), shape(1, width)
    kept = jax.eval_shape(lambda *arguments: jax.vjp(block, *arguments)[1], params, carry)
    bytes_of = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    values = (bytes_of(kept) - bytes_of(params)) / 2 / ((places + words) * width)
    assert values == pytest.approx(stacked, abs=0.6)
