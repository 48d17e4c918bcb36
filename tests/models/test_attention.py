"""The splash kernel, interpreted on the CPU, against `jax.nn.dot_product_attention`.

In float32 both sum up as many numbers as there are tokens, in different orders, which depend on the
CPU: the difference is that of so many roundings, whose sum grows as their root. In bfloat16 an
output of order one differs by the rounding of probabilities, which the kernel does block by block.
cuDNN's runs on GPUs alone: how it is chosen and called is tested here, its numbers are not.
"""

import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import PartitionSpec

from diffusionrl_jax.distributed.mesh import batch_sharding, make_mesh
from diffusionrl_jax.models import attention
from diffusionrl_jax.models.attention import (
    attend,
    block_size,
    choose,
    partition,
    takes_cudnn,
    takes_splash,
)


def rounding(tokens):
    """Of a sum of so many numbers in float32, relative to the largest."""
    return 2**-23 * tokens**0.5


def inputs(batch, tokens, heads, size, dtype):
    keys = jax.random.split(jax.random.key(tokens + size), 4)
    return [jax.random.normal(key, (batch, tokens, heads, size), dtype) for key in keys]


def output_and_gradients(arguments, cotangent, **options):
    """The output, and the gradients of query, key and value."""
    scale = arguments[0].shape[-1] ** -0.5
    function = partial(attend, scale=scale, **options)

    @jax.jit
    def compute(arguments, cotangent):
        output, transpose = jax.vjp(function, *arguments)
        return output, *transpose(cotangent)

    return compute(arguments, cotangent)


def assert_agrees(arrays, mesh, relative, key_bias=None, fills_up=False):
    """Compares with XLA's attention of the same numbers in float32, relative to the largest."""
    *arguments, cotangent = arrays
    own = {"attention": "splash", "mesh": mesh, "key_bias": key_bias, "fills_up": fills_up}
    ours = output_and_gradients(arguments, cotangent, **own)
    exact = [array.astype(jnp.float32) for array in arrays]
    theirs = {"attention": "dot_product", "key_bias": key_bias}
    expected = output_and_gradients(exact[:3], exact[3], **theirs)
    for actual, wanted in zip(ours, expected, strict=True):
        assert actual.dtype == arrays[0].dtype
        error = np.abs(np.asarray(actual, np.float32) - wanted).max()
        assert error <= relative * np.abs(wanted).max()


@pytest.mark.parametrize(
    "size", [40, 64, *(pytest.param(size, marks=pytest.mark.slow) for size in (80, 160))]
)
def test_splash_agrees_for_the_head_sizes_of_stable_diffusion(size):
    mesh = make_mesh(devices=jax.devices()[:1])
    assert_agrees(inputs(1, 1024, 1, size, jnp.float32), mesh, rounding(1024))


@pytest.mark.parametrize("size", [40, 64])
def test_splash_agrees_in_bfloat16(size):
    mesh = make_mesh(devices=jax.devices()[:1])
    # Two roundings to 8 bits.
    assert_agrees(inputs(1, 1024, 1, size, jnp.bfloat16), mesh, 2**-7)


@pytest.mark.parametrize(
    ("queries", "keys", "has_bias"),
    [
        pytest.param(130, 130, False, marks=pytest.mark.slow),
        (128, 131, True),
        pytest.param(300, 256, True, marks=pytest.mark.slow),
    ],
    ids=["self", "last block", "queries alone"],
)
def test_splash_agrees_for_tokens_that_are_filled_up(monkeypatch, queries, keys, has_bias):
    monkeypatch.setattr(attention, "KERNEL_TOKENS", 128)
    mesh = make_mesh(devices=jax.devices()[:1])
    query, _, _, cotangent = inputs(2, queries, 2, 16, jnp.float32)
    _, key, value, _ = inputs(2, keys, 2, 16, jnp.float32)
    bias = np.float32([0] * (keys - 1) + [np.log(256)]) if has_bias else None
    arrays = (query, key, value, cotangent)
    assert_agrees(arrays, mesh, rounding(keys), bias, fills_up=True)
    assert takes_splash(query.shape, key.shape, fills_up=True)


@pytest.mark.slow
def test_splash_agrees_for_4096_tokens():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert_agrees(inputs(1, 4096, 1, 64, jnp.float32), mesh, rounding(4096))


@pytest.mark.parametrize(
    ("batch", "heads", "fsdp"),
    [pytest.param(8, 1, 2, marks=pytest.mark.slow), (4, 2, 2), (1, 1, 4)],
    ids=["batch", "heads", "neither"],
)
def test_splash_agrees_however_it_is_split(monkeypatch, batch, heads, fsdp):
    # Small, since eight devices are interpreted on the same cores.
    monkeypatch.setattr(attention, "KERNEL_TOKENS", 128)
    arrays = inputs(batch, 128, heads, 8, jnp.float32)
    mesh = make_mesh(fsdp)
    if batch == 8:
        arrays = jax.device_put(arrays, batch_sharding(mesh))
    assert_agrees(arrays, mesh, rounding(128))


def test_splash_within_one_device_of_many(monkeypatch):
    """As the update calls it: what it gets is a device's own."""
    monkeypatch.setattr(attention, "KERNEL_TOKENS", 128)
    mesh = make_mesh(fsdp=2)
    arrays = inputs(8, 128, 1, 8, jnp.float32)
    results = []
    for kind in ("splash", "dot_product"):
        own = partial(output_and_gradients, attention=kind, mesh=mesh)
        spec = batch_sharding(mesh).spec
        over_devices = jax.shard_map(
            lambda *arrays, own=own: own(arrays[:3], arrays[3]),
            mesh=mesh,
            in_specs=(spec,) * 4,
            out_specs=spec,
            check_vma=False,
        )
        results.append(over_devices(*arrays))
    for ours, expected in zip(*results, strict=True):
        assert np.abs(ours - expected).max() <= rounding(128) * np.abs(expected).max()


def test_partition_of_batch_and_heads():
    mesh = make_mesh(fsdp=2)  # 4 x 2
    assert partition(16, 5, mesh) == PartitionSpec(("data", "fsdp"), ())
    assert partition(4, 10, mesh) == PartitionSpec(("data",), ("fsdp",))
    assert partition(2, 5, mesh) == PartitionSpec(("fsdp",), ())
    assert partition(1, 8, mesh) == PartitionSpec((), ("data", "fsdp"))


@pytest.mark.parametrize(
    ("tokens", "expected"), [(1024, 512), (4096, 512), (2304, 384), (9216, 512), (1408, 128)]
)
def test_blocks_divide_the_tokens(tokens, expected):
    assert block_size(tokens) == expected


def test_only_long_self_attention_of_whole_blocks_is_the_kernels():
    long = (2, 1024, 8, 40)
    assert takes_splash(long, long)
    assert not takes_splash(long, (2, 77, 8, 40))
    assert not takes_splash((2, 256, 8, 160), (2, 256, 8, 160))
    assert not takes_splash((2, 1089, 8, 40), (2, 1089, 8, 40))


def devices_of(platform, capability=None):
    """What `choose` sees of a mesh of such devices, which are not here."""
    fields = {"platform": platform, "device_kind": platform}
    if capability is not None:
        fields["compute_capability"] = capability
    return SimpleNamespace(devices=np.array([[SimpleNamespace(**fields)]]))


@pytest.mark.parametrize(
    ("platform", "capability", "chosen"),
    [
        ("tpu", None, "splash"),
        ("gpu", "8.0", "cudnn"),  # A100
        ("gpu", "9.0", "cudnn"),  # H100
        ("gpu", "12.0", "cudnn"),
        ("gpu", "7.5", "dot_product"),  # T4
        ("gpu", "gfx942", "dot_product"),  # MI300
        ("cpu", None, "dot_product"),
    ],
)
def test_auto_follows_the_devices_compiled_for(platform, capability, chosen):
    mesh = devices_of(platform, capability)
    assert choose("auto", mesh) == chosen
    assert choose("dot_product", mesh) == "dot_product"
    if chosen == "cudnn":
        assert choose("cudnn", mesh) == "cudnn"
    else:
        with pytest.raises(ValueError, match=f"needs NVIDIA GPUs .* the devices are '{platform}'"):
            choose("cudnn", mesh)


def test_only_long_self_attention_of_half_precision_is_cudnns():
    long = (2, 1024, 8, 40)
    assert takes_cudnn(long, long, jnp.bfloat16) and takes_cudnn(long, long, jnp.float16)
    assert takes_cudnn((2, 1089, 8, 128), (2, 1089, 8, 128), jnp.bfloat16)
    assert not takes_cudnn(long, long, jnp.float32)
    assert not takes_cudnn(long, (2, 77, 8, 40), jnp.bfloat16)
    for other in ((2, 256, 8, 40), (2, 4096, 1, 512), (2, 1024, 8, 36)):
        assert not takes_cudnn(other, other, jnp.bfloat16)


@pytest.mark.parametrize("manual", [False, True], ids=["split_here", "split_outside"])
def test_cudnn_is_called_by_each_device_with_its_own(monkeypatch, manual):
    """As JAX lowers it for CUDA, on a machine without: forwards, and with gradients.

    That cuDNN is there, and new enough, is what it is made to believe.
    """
    monkeypatch.setattr(attention, "_has_cudnn", lambda mesh: True)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    mesh = make_mesh(fsdp=2)
    arrays = inputs(16, 1024, 4, 40, jnp.bfloat16)

    def compute(*arrays):
        return output_and_gradients(arrays[:3], arrays[3], attention="auto", mesh=mesh)

    if manual:
        spec = batch_sharding(mesh).spec
        compute = jax.shard_map(
            compute, mesh=mesh, in_specs=(spec,) * 4, out_specs=spec, check_vma=False
        )
    text = jax.jit(compute).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"custom_call @__cudnn\$(\w+)\(.*?: \((tensor<.*?>),", text)
    shape = "tensor<2x1024x4x40xbf16>"
    assert calls == [("fmhaSoftmax", shape), ("fmhaSoftmaxBackward", shape)]
    assert text.count(r"fmha_scale\22: 0.158113") == 2 and "dot_general" not in text


def test_attention_needs_to_know_the_devices():
    assert choose("auto", None) == "dot_product"
    assert choose("auto", make_mesh()) == "dot_product"
    for kernel in ("splash", "cudnn"):
        with pytest.raises(ValueError, match="needs the mesh"):
            choose(kernel, None)
    with pytest.raises(ValueError, match="'flash' is not one of"):
        choose("flash", make_mesh())
