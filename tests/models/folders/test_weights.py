"""The mapping between PyTorch's and Flax's names and layouts, and its errors."""

import tracemalloc

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusionrl_jax.data.files import read_json
from diffusionrl_jax.models.folders import tensor_files, weights
from diffusionrl_jax.models.folders.networks import RENAMES

RNG = np.random.default_rng(0)


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture
def params():
    return {
        "down_blocks_0": {"resnets_1": {"conv1": {"kernel": array(3, 3, 2, 5), "bias": array(5)}}},
        "layers": {"0": {"fc1": {"kernel": array(4, 6)}}},
        "time_embedding": {"linear_1": {"kernel": array(2, 3)}},
        "norm": {"scale": array(5)},
        "token_embedding": {"embedding": array(7, 4)},
        "class_embedding": array(4),
    }


def test_names_and_layouts(params):
    state = weights.to_pytorch(params)
    shapes = {name: value.shape for name, value in state.items()}
    assert shapes == {
        "down_blocks.0.resnets.1.conv1.weight": (5, 2, 3, 3),
        "down_blocks.0.resnets.1.conv1.bias": (5,),
        "layers.0.fc1.weight": (6, 4),
        "time_embedding.linear_1.weight": (3, 2),
        "norm.weight": (5,),
        "token_embedding.weight": (7, 4),
        "class_embedding": (4,),
    }


def test_layouts_mean_the_same_in_torch(params):
    """A transposed square kernel has the right shape: only the values can tell."""
    image = array(1, 6, 6, 2)
    conv = params["down_blocks_0"]["resnets_1"]["conv1"]
    ours = jax.lax.conv_general_dilated(
        image, conv["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    state = weights.to_pytorch(params)
    theirs = torch.nn.functional.conv2d(
        torch.from_numpy(image).permute(0, 3, 1, 2),
        torch.from_numpy(state["down_blocks.0.resnets.1.conv1.weight"].copy()),
    )
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_round_trip_is_exact(tiny, name):
    _, params = tiny
    state = weights.to_pytorch(params[name], rename=RENAMES[name])
    assert len(state) == len(jax.tree.leaves(params[name]))
    back = weights.to_flax(state, params[name], rename=RENAMES[name])
    jax.tree.map(np.testing.assert_array_equal, back, dict(params[name]))


def test_template_decides_between_linear_and_convolution():
    linear = {"proj_in": {"kernel": array(3, 4)}}
    convolution = {"proj_in": {"kernel": linear["proj_in"]["kernel"][None, None]}}
    for stored in (linear, convolution):
        for template in (linear, convolution):
            loaded = weights.to_flax(weights.to_pytorch(stored), template)
            np.testing.assert_array_equal(
                loaded["proj_in"]["kernel"], template["proj_in"]["kernel"]
            )


def test_rename(params):
    rename = weights.substitution((r"^", "model."), (r"\.fc1\.", ".dense."))
    state = weights.to_pytorch(params, rename=rename)
    assert "model.layers.0.dense.weight" in state
    back = weights.to_flax(state, params, rename=rename)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    with pytest.raises(ValueError, match="two parameters to one name.*'bias'"):
        weights.to_pytorch(params, rename=lambda name: "bias")


def test_missing_extra_and_misshapen(params):
    state = weights.to_pytorch(params)
    lacking = {name: value for name, value in state.items() if name != "norm.weight"}
    with pytest.raises(ValueError, match="a.safetensors lacks 'norm.weight'"):
        weights.to_flax(lacking, params, source="a.safetensors")
    more = {**state, "head.weight": array(2)}
    with pytest.raises(ValueError, match="a.safetensors has tensors .*'head.weight'"):
        weights.to_flax(more, params, source="a.safetensors")
    weights.to_flax(more, params, ignore=(r"^head\.",))
    weights.to_flax({**state, "embeddings.position_ids": np.arange(3)}, params)
    wrong = {**state, "layers.0.fc1.weight": array(6, 5)}
    with pytest.raises(ValueError, match=r"'layers.0.fc1.weight' in a.* \(6, 5\).* \(6, 4\)"):
        weights.to_flax(wrong, params, source="a.safetensors")


def test_every_reader_refuses_what_is_not_finite(params, tmp_path):
    state = weights.to_pytorch(params)
    broken = {**state, "norm.weight": np.float32([1, 2, np.nan, 4, 5])}
    path = tmp_path / "model.safetensors"
    weights.write_safetensors(path, broken)
    words = "Tensor 'norm.weight' in .*{} has numbers that are NaN or infinite"
    for upcast in (True, False):
        with pytest.raises(ValueError, match=words.format("model.safetensors")):
            weights.read_safetensors(path, upcast)
    with pytest.raises(ValueError, match=words.format("a.safetensors")):
        weights.to_flax(broken, params, source="a.safetensors")
    with pytest.raises(ValueError, match=words.format("model.safetensors")):
        weights.to_flax(tensor_files.read_header(path), params)


def test_numbers_that_a_smaller_dtype_cannot_hold(tmp_path):
    save_file({"a": torch.tensor([1e300, 1.0], dtype=torch.float64)}, tmp_path / "x.safetensors")
    words = r"Tensor 'a' in .* has numbers that are NaN or infinite \(float32\)"
    with pytest.raises(ValueError, match=words):
        weights.read_safetensors(tmp_path / "x.safetensors")
    kept = weights.read_safetensors(tmp_path / "x.safetensors", upcast=False)
    np.testing.assert_array_equal(kept["a"], [1e300, 1.0])
    with pytest.raises(ValueError, match=words):
        weights.to_flax(kept, {"a": np.zeros(2, np.float32)})


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_reads_and_writes_what_torch_does(tmp_path, dtype):
    tensors = {
        "a": torch.randn(3, 4).to(getattr(torch, dtype)),
        "scalar": torch.tensor(2.5).to(getattr(torch, dtype)),
        "ids": torch.arange(5),
    }
    save_file(tensors, tmp_path / "torch.safetensors")
    state = weights.read_safetensors(tmp_path / "torch.safetensors")
    assert state["a"].dtype == np.float32 and state["ids"].dtype == np.int64
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(state[name], tensor.to(torch.float64).numpy())
    as_stored = weights.read_safetensors(tmp_path / "torch.safetensors", upcast=False)
    assert str(as_stored["a"].dtype) == dtype
    # A transposed view: safetensors itself would write its memory in the wrong order.
    weights.write_safetensors(tmp_path / "ours.safetensors", {**state, "a": state["a"].T}, dtype)
    back = load_file(tmp_path / "ours.safetensors")
    assert torch.equal(back["a"], tensors["a"].T) and torch.equal(back["ids"], tensors["ids"])


def test_refuses_to_write_what_float16_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="'big'.*float16's range"):
        weights.write_safetensors(tmp_path / "x", {"big": np.float32([1e6])}, "float16")
    with pytest.raises(ValueError, match="int4"):
        weights.write_safetensors(tmp_path / "x", {}, "int4")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_tensor_at_a_time_is_held_to_be_written(dtype, tmp_path):
    tensor_bytes, count = 2**22, 16
    params = {f"layers_{i}": {"kernel": array(1024, 1024)} for i in range(count)}
    state = weights.to_pytorch(params)
    tracemalloc.start()
    weights.write_safetensors(tmp_path / "x", state, dtype)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = (tmp_path / "x").stat().st_size
    assert size > count * tensor_bytes / (1 if dtype == "float32" else 2)
    assert peak < 3 * tensor_bytes


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_truncated_file(tmp_path, kept):
    path = tmp_path / "model.safetensors"
    weights.write_safetensors(path, {"a": array(3, 4)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="model.safetensors is not a whole safetensors file"):
        weights.read_safetensors(path)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        weights.read_safetensors(tmp_path / "nowhere" / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="incomplete"):
        weights.read_safetensors(tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="only '.*pytorch_model.bin'.*run any code"):
        weights.read_safetensors(tmp_path / "model.safetensors")


def test_unsupported_dtype(tmp_path):
    save_file({"a": torch.zeros(2).to(torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="'a'.*F8_E4M3"):
        weights.read_safetensors(tmp_path / "x.safetensors")


def test_json_that_is_no_object(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="JSON object, not list"):
        read_json(tmp_path / "config.json")
