"""What the interceptors change and what they must not, against diffusers' own modules."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import FlaxUNet2DConditionModel
from diffusers.models.attention_flax import FlaxAttention
from diffusers.models.unets.unet_2d_blocks_flax import FlaxCrossAttnDownBlock2D
from diffusers.models.vae_flax import FlaxAttentionBlock

from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.models.parameters import random_parameters
from diffusionrl_jax.models.stable_diffusion.interceptors import float32_attention, interception


@pytest.fixture(scope="module")
def block():
    """A part of the UNet that has everything: its parameters, and a function to compile."""
    module = FlaxCrossAttnDownBlock2D(in_channels=32, out_channels=32, num_attention_heads=2)
    keys = jax.random.split(jax.random.key(3), 4)
    arguments = (
        jax.random.normal(keys[0], (2, 4, 4, 32)),
        jax.random.normal(keys[1], (2, 128)),
        jax.random.normal(keys[2], (2, 5, 16)),
    )
    params = jax.jit(module.init)(keys[3], *arguments)

    def gradient_and_program(**options):
        def loss(params):
            with interception(**options):
                output, _ = module.apply(params, *arguments)
            return jnp.mean(output**2), output

        traced = jax.jit(jax.grad(loss, has_aux=True)).trace(params)
        return traced.lower().compile()(params), str(traced.jaxpr)

    return gradient_and_program


@pytest.fixture(scope="module")
def plain(block):
    return block()


def checkpoints(program):
    """How many modules a program's gradient recomputes."""
    return program.count("prevent_cse=")


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-5), actual, expected
    )


# One residual block and one transformer block; with the level around them, these twice.
@pytest.mark.slow
@pytest.mark.parametrize(("remat", "added"), [("full", 5), ("blocks", 2)])
def test_rematerialisation_changes_no_value(block, plain, remat, added):
    values, program = block(remat=remat)
    plain_values, plain_program = plain
    assert checkpoints(program) - checkpoints(plain_program) == added
    assert_close(values, plain_values)


def test_tap_convolution_changes_no_value(block, plain):
    values, program = block(convolution="taps")
    plain_values, plain_program = plain
    assert "custom_vjp" not in plain_program
    assert program.count("conv_general_dilated[") < plain_program.count("conv_general_dilated[")
    assert_close(values, plain_values)


@pytest.mark.parametrize(("backend", "same_as"), [("cpu", "taps"), ("tpu", "xla")])
def test_convolution_suits_the_devices(block, monkeypatch, backend, same_as):
    _, expected = block(convolution=same_as)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    _, program = block(convolution="auto")
    assert program.count("custom_vjp") == expected.count("custom_vjp")


def test_both_together(block, plain):
    values, _ = block(remat="blocks", convolution="taps")
    assert_close(values, plain[0])


# The first level has attention, or has none.
LEVELS = {
    "attention": (["CrossAttnDownBlock2D", "DownBlock2D"], ["UpBlock2D", "CrossAttnUpBlock2D"]),
    "no attention": (["DownBlock2D", "CrossAttnDownBlock2D"], ["CrossAttnUpBlock2D", "UpBlock2D"]),
}
# Convolutions before the text: the first one, two of a residual block; to the next level, one
# down, and again two with one around them, from 32 channels to 64.
SHARED_CONVOLUTIONS = {"attention": 3, "no attention": 7}


def unet_with(first_level, channels):
    """A UNet with that first level: a function like `denoise`, and its parameters."""
    down, up = LEVELS[first_level]
    unet = FlaxUNet2DConditionModel(
        sample_size=4,
        block_out_channels=channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=16,
    )

    def denoise(params, latents, timesteps, text, **options):
        with interception(**options):
            return unet.apply({"params": params}, latents, timesteps, text).sample

    return denoise, random_parameters(
        jax.eval_shape(unet.init_weights, jax.random.key(0)), jax.random.key(1)
    )


def several_texts(shape, text_shape, count=2, passes=2):
    """Latents, timesteps and texts of some samples, and these with a row for each text."""
    keys = jax.random.split(jax.random.key(0), 2)
    latents = jax.random.normal(keys[0], (count, *shape))
    timesteps = jnp.array([3, 700])
    text = jax.random.normal(keys[1], (count * passes, *text_shape))
    repeated = (np.repeat(latents, passes, axis=0), np.repeat(timesteps, passes))
    return (latents, timesteps, text), (*map(jnp.asarray, repeated), text)


@pytest.mark.slow
@pytest.mark.parametrize("first_level", ["no attention", "attention"])
def test_texts_of_a_sample_share_what_comes_before_them(first_level):
    """The output is that of a row of latents for every text, to float32's rounding."""
    denoise, params = unet_with(first_level, (64, 64))
    shared, repeated = several_texts((4, 8, 8), (5, 16))
    program = jax.jit(denoise)
    output, expected = program(params, *shared), program(params, *repeated)
    assert np.abs(expected[0] - expected[1]).max() > 0.01  # the texts differ
    np.testing.assert_allclose(output, expected, atol=3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("first_level", list(LEVELS))
def test_gradient_through_what_texts_share(first_level, remat):
    denoise, params = unet_with(first_level, (64, 64))
    shared, repeated = several_texts((4, 8, 8), (5, 16))

    def loss(params, arguments, **options):
        return jnp.mean(jnp.square(denoise(params, *arguments, **options) - 1))

    gradient = jax.jit(jax.grad(loss), static_argnames="remat")
    gradients = gradient(params, shared, remat=remat)
    expected = gradient(params, repeated)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), gradients, expected)
    assert max(jax.tree.leaves(difference)) < 1e-5 * largest


@pytest.mark.parametrize("first_level", list(LEVELS))
def test_nothing_before_the_text_is_computed_twice(first_level):
    denoise, params = unet_with(first_level, (32, 64))
    rows = []

    def record(next_function, args, kwargs, context):
        if isinstance(context.module, nn.Conv):
            rows.append(len(args[0]))
        return next_function(*args, **kwargs)

    shared, repeated = several_texts((4, 4, 4), (5, 16))
    with nn.intercept_methods(record):
        output = jax.eval_shape(denoise, params, *shared)
        once = SHARED_CONVOLUTIONS[first_level]
        assert rows == [2] * once + [4] * (len(rows) - once)
        assert output.shape == (4, 4, 4, 4)
        rows.clear()
        jax.eval_shape(denoise, params, *repeated)
        assert set(rows) == {4}


@pytest.mark.slow
def test_texts_of_a_sample_in_xl(tiny_xl):
    model, params = tiny_xl
    prompts = model.tokenize(["a cat", "", "a dog", ""])
    text = jax.jit(model.encode_text)(params["text_encoder"], prompts)
    shared, repeated = several_texts(model.latent_shape, (1,))
    output, expected = (
        jax.jit(model.denoise)(params["unet"], *arguments[:2], text)
        for arguments in (shared, repeated)
    )
    np.testing.assert_allclose(output, expected, atol=1e-6)
    with pytest.raises(AssertionError, match="4 is not divisible by 3"):
        model.denoise(params["unet"], jnp.zeros((3, *model.latent_shape)), jnp.zeros(3), text)


def apply(module, *arguments):
    """Compiled anew each time: JAX's cache does not see the interceptors."""
    return jax.jit(lambda *arguments: module.apply(*arguments))(*arguments)


@pytest.mark.parametrize("split_head_dim", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_attention_agrees_with_diffusers(split_head_dim, cross):
    module = FlaxAttention(query_dim=24, heads=3, dim_head=8, split_head_dim=split_head_dim)
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (2, 9, 24))
    context = jax.random.normal(keys[1], (2, 5, 24)) if cross else None
    params = jax.jit(module.init)(keys[2], hidden, context)
    expected = apply(module, params, hidden, context)
    with nn.intercept_methods(float32_attention("dot_product", None)):
        actual = apply(module, params, hidden, context)
    np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_attention_softmax_is_float32():
    """In bfloat16 our output lies closer to the float32 one than diffusers' does."""
    keys = jax.random.split(jax.random.key(0), 2)
    hidden = 4 * jax.random.normal(keys[0], (2, 64, 32))
    full = FlaxAttention(32, 2, 16)
    half = FlaxAttention(32, 2, 16, dtype=jnp.bfloat16)
    params = jax.jit(full.init)(keys[1], hidden)
    exact = apply(full, params, hidden)
    stock = apply(half, params, hidden)
    with nn.intercept_methods(float32_attention("dot_product", None)):
        ours = apply(half, params, hidden)
    assert ours.dtype == jnp.bfloat16
    assert jnp.mean(jnp.abs(ours - exact)) < jnp.mean(jnp.abs(stock - exact))


def test_attention_of_the_vae_agrees_with_diffusers():
    module = FlaxAttentionBlock(channels=24, num_groups=4)
    keys = jax.random.split(jax.random.key(0), 2)
    hidden = jax.random.normal(keys[0], (2, 3, 4, 24))
    params = jax.jit(module.init)(keys[1], hidden)
    expected = apply(module, params, hidden)
    with nn.intercept_methods(float32_attention("dot_product", None)):
        actual = apply(module, params, hidden)
    np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_splash_is_reached_through_the_modules():
    """1024 tokens in self-attention go to the kernel, and the result is the same."""
    module = FlaxAttention(query_dim=16, heads=2, dim_head=8)
    keys = jax.random.split(jax.random.key(0), 2)
    hidden = jax.random.normal(keys[0], (1, 1024, 16))
    params = jax.jit(module.init)(keys[1], hidden)
    expected = apply(module, params, hidden)
    with interception(attention="splash", mesh=make_mesh(devices=jax.devices()[:1])):
        program = str(jax.make_jaxpr(module.apply)(params, hidden))
        actual = apply(module, params, hidden)
    assert "pallas_call" in program
    np.testing.assert_allclose(actual, expected, atol=2e-6)


@pytest.mark.parametrize(
    "option", [{"remat": "everything"}, {"convolution": "fast"}, {"attention": "flash"}]
)
def test_unknown_options(option):
    with pytest.raises(ValueError, match="is not one of"), interception(**option):
        pass
