"""The operations and parameters of a UNet's blocks, against those that PyTorch's modules have."""

import dataclasses

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from diffusionrl_jax.models import attention
from diffusionrl_jax.models.stable_diffusion import arithmetic
from tests.models.conftest import UNET

TOKENS, SIDES = 5, (8, 12)
CHANGES = {
    "deeper": {
        "attention_head_dim": [2, 4],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 3],
        "use_linear_projection": True,
    },
    "no attention first": {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    },
}


def operations(unet):
    """Two for each product that PyTorch computes, but for those with the zeros around a picture.

    What is made of the time is left out.
    """
    counted = []

    def convolution(module, inputs, output):
        ones = torch.ones(1, 1, *inputs[0].shape[2:]), torch.ones(1, 1, *module.kernel_size)
        products = torch.nn.functional.conv2d(*ones, None, module.stride, module.padding).sum()
        counted.append(2 * products.item() * module.in_channels * module.out_channels)

    def linear(module, inputs, output):
        counted.append(2 * inputs[0].numel() * module.out_features)

    def attention(module, inputs, options, output):
        states, width = inputs[0], module.inner_dim
        seen = options.get("encoder_hidden_states")
        seen = states if seen is None else seen
        counted.append(4 * states.shape[1] * seen.shape[1] * width)

    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(convolution)
        elif isinstance(module, torch.nn.Linear) and "time_emb" not in name:
            module.register_forward_hook(linear)
        elif isinstance(module, Attention):
            module.register_forward_hook(attention, with_kwargs=True)
    channels = unet.config.in_channels
    text = torch.zeros(1, TOKENS, unet.config.cross_attention_dim)
    with torch.no_grad():
        unet(torch.zeros(1, channels, *SIDES), 1, text)
    return sum(counted)


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_operations_and_parameters_are_pytorchs(changes):
    config = UNET | changes
    unet = UNet2DConditionModel.from_config(config).eval()
    found = arithmetic.network(config, TOKENS, SIDES)
    assert found.operations == pytest.approx(operations(unet), rel=1e-9)
    expected = sum(
        parameter.numel()
        for name, parameter in unet.named_parameters()
        if parameter.ndim > 1
        and "time_emb_proj" not in name
        and (".resnets." in name or ".transformer_blocks." in name)
    )
    blocks = [block for part in found.parts for block in part]
    assert sum(block.parameters for block in blocks) == expected
    assert len(blocks) == sum(
        type(module).__name__ in ("ResnetBlock2D", "BasicTransformerBlock")
        for module in unet.modules()
    )


def test_memory_of_a_network_by_hand(monkeypatch):
    """Of two levels of two blocks each, of which one attends to 3 tokens with 2 heads."""
    block = arithmetic.Block(1.0, read=10, kept=100)
    attending = arithmetic.Block(1.0, read=20, kept=50, tokens=3, heads=2)
    network = arithmetic.Network(((block, block), (attending, block)), 4.0, skips=7)
    matrices = 4 * 2 * 3**2
    assert attending.probabilities(kernel=False) == matrices
    one = max(
        arithmetic.DIFFERENTIATED * 2 * 100,
        arithmetic.DIFFERENTIATED * 2 * 50 + arithmetic.MATRICES * matrices,
    )
    assert network.backward("none", 2, False) == max(2 * (3 * 100 + 50) + matrices, one)
    assert network.backward("blocks", 2, False) == 2 * (10 + 10 + 20 + 10) + one
    # What the kernel leaves of its attention, beside: of 64 values a head, 128 are stored.
    monkeypatch.setattr(attention, "KERNEL_TOKENS", 3)
    long = dataclasses.replace(attending, read=3 * 2 * 64, fills_up=True, attentions=2)
    assert long.read_and_attended(kernel=True) == 3 * 2 * (64 + 2 * 128)
    long = dataclasses.replace(long, read=3 * 2 * 128)
    assert long.read_and_attended(kernel=True) == 3 * 2 * (128 + 2 * 128)
    long = dataclasses.replace(long, read=20)
    assert long.read_and_attended(kernel=False) == attending.read_and_attended(kernel=True) == 20
    # What is kept between the levels and of the larger level's blocks.
    assert network.backward("full", 2, False) == 2 * (7 + 10 + 20 + 30) + one
