"""What every family says of a model: the same numbers, in the same units, of the same things."""

import pytest

from diffusionrl_jax.models.families import describe_model

# Latents have an eighth of the picture's sides, and these many channels.
CHANNELS = {
    "sd15": 4,
    "sdxl": 4,
    "stabilityai/stable-diffusion-3.5-medium": 16,
    "black-forest-labs/FLUX.1-dev": 16,
}
SIZE = 512, 768
REMAT = "none", "blocks", "full"


@pytest.fixture(scope="module", params=CHANNELS)
def described(request):
    return request.param, describe_model(request.param, SIZE)


def test_sizes_are_numbers_of_one_sample(described):
    name, found = described
    assert found.image == 3 * 512 * 768
    assert found.latent == CHANNELS[name] * 64 * 96
    # The embedding of a CLIP of 77 tokens, of 768 numbers each, is the least of them.
    assert found.text >= 77 * 768
    assert 0 < found.largest_encoder <= found.text_encoder
    assert 0 < found.network.largest_block < found.denoiser


def test_bytes_grow_with_those_of_a_number(described):
    """At most in proportion: the probabilities of attention are float32 in any case."""
    _, found = described
    network = found.network
    assert found.decoded(4) == 2 * found.decoded(2) > 4 * found.image
    for kernel in (False, True):
        held = lambda itemsize, kernel=kernel: [
            network.forward(itemsize, kernel),
            *(network.backward(remat, itemsize, kernel) for remat in REMAT),
        ]
        for half, whole in zip(held(2), held(4), strict=True):
            assert half < whole <= 2 * half


def test_more_is_held_by_what_computes_less_again(described):
    network = described[1].network
    held = {remat: network.backward(remat, 2, True) for remat in REMAT}
    assert held["none"] > held["blocks"] > network.forward(2, True)
    assert held["none"] > held["full"] > network.forward(2, True)
    # Without the kernel, the probabilities of all pairs of tokens are held beside.
    assert network.forward(2, False) > network.forward(2, True)
    assert network.backward("none", 2, False) > held["none"]
