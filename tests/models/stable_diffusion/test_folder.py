"""Every way in which a diffusers folder can be stored, and every way in which it can be wrong."""

import functools
import math
import subprocess
import sys

import fsspec
import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from etils import epath
from fsspec.implementations.dirfs import DirFileSystem
from safetensors.torch import load_file, save_file

from diffusionrl_jax.data import stored_tensors
from diffusionrl_jax.distributed import mesh as distributed_mesh
from diffusionrl_jax.models.folders import hub
from diffusionrl_jax.models.folders.networks import NETWORKS, STEMS
from diffusionrl_jax.models.stable_diffusion.folder import (
    load_stable_diffusion,
    save_stable_diffusion,
)


@pytest.fixture
def folder(tiny, tmp_path):
    save_stable_diffusion(tmp_path / "model", *tiny, dtype="float32")
    return tmp_path / "model"


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, jax.device_get(dict(expected)))


def weights_file(folder, name):
    return folder / name / f"{STEMS[name]}.safetensors"


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shard", ["100KB", "1GB"])
def test_what_pytorch_saves_sharded_and_in_half_precision(tiny, folder, tmp_path, variant, shard):
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    if variant:
        pipeline.to(torch.float16)
    pipeline.save_pretrained(tmp_path / "saved", variant=variant, max_shard_size=shard)
    files = {file.name for file in (tmp_path / "saved" / "unet").iterdir()}
    assert ("diffusion_pytorch_model.safetensors" in files) == (variant is None and shard == "1GB")
    assert any("-of-" in name for name in files) == (shard == "100KB")
    _, params = load_stable_diffusion(tmp_path / "saved")
    dtype = np.float16 if variant else np.float32
    _, expected = tiny
    assert_same(params, jax.tree.map(lambda leaf: np.float32(dtype(leaf)), dict(expected)))


def test_full_precision_is_preferred(tiny, folder):
    file = weights_file(folder, "unet")
    half = {name: tensor.half() for name, tensor in load_file(file).items()}
    save_file(half, file.with_suffix(".fp16.safetensors"))
    _, params = load_stable_diffusion(folder)
    assert_same(params, tiny[1])


def test_parameters_are_placed_as_they_are_read(tiny, folder, monkeypatch):
    monkeypatch.setattr(distributed_mesh, "REPLICATED_BYTES", 0)
    sharding = functools.partial(distributed_mesh.parameter_sharding, distributed_mesh.make_mesh(4))
    events = []

    def recorded(event, function):
        def call(*arguments, **options):
            events.append(event)
            return function(*arguments, **options)

        return call

    tensor = stored_tensors.StoredTensor
    monkeypatch.setattr(tensor, "__array__", recorded("read", tensor.__array__))
    place = recorded("place", jax.make_array_from_callback)
    monkeypatch.setattr(jax, "make_array_from_callback", place)
    _, params = load_stable_diffusion(folder, sharding=sharding)
    # No tensor is read before the one before it is placed.
    assert events == ["read", "place"] * len(jax.tree.leaves(params))
    assert_same(params, tiny[1])
    kernel = params["unet"]["down_blocks_1"]["resnets_0"]["conv2"]["kernel"]
    assert kernel.shape == (3, 3, 64, 64) and kernel.dtype == np.float32
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 3, 16, 64)}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


def test_remote_folder(tiny, folder, tmp_path, monkeypatch):
    """`gs://` through fsspec, with a file system that stands for the bucket."""

    class Bucket(DirFileSystem):
        cachable = False

        def __init__(self, **unused):
            super().__init__(str(tmp_path), fsspec.filesystem("file"))

        @classmethod
        def _strip_protocol(cls, path):
            return path.removeprefix("gs://bucket").strip("/")

        def _join(self, path):
            return super()._join(self._strip_protocol(path))

    fsspec.register_implementation("gcs", Bucket, clobber=True)
    _, params = load_stable_diffusion("gs://bucket/model")
    assert_same(params, tiny[1])
    with pytest.raises(FileNotFoundError, match="gs://bucket/nothing does not exist"):
        load_stable_diffusion("gs://bucket/nothing")


def test_remote_folder_without_its_package(monkeypatch):
    def exists(path):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(type(epath.Path("gs://bucket/model")), "exists", exists)
    with pytest.raises(ValueError, match="gs://bucket/model cannot.*pip install gcsfs"):
        hub.locate("gs://bucket/model")


def test_pickled_weights_are_refused_with_the_command_that_converts_them(tiny, folder):
    states = {name: load_file(weights_file(folder, name)) for name in NETWORKS}
    for name, state in states.items():
        weights_file(folder, name).unlink()
        pickled = folder / name / {"model": "pytorch_model"}.get(STEMS[name], STEMS[name])
        torch.save({}, f"{pickled}.fp16.bin")
        if name != "vae":
            torch.save(state, f"{pickled}.bin")
            continue
        first = dict(list(state.items())[:9])
        rest = {key: value for key, value in state.items() if key not in first}
        torch.save(first, f"{pickled}-00001-of-00002.bin")
        torch.save(rest, f"{pickled}-00002-of-00002.bin")
    with pytest.raises(FileNotFoundError, match="any code and are not read") as error:
        load_stable_diffusion(folder)
    commands = str(error.value).split("\n")[-1].split(" && ")
    assert ["weights_only=True" in command for command in commands] == [True] * 3
    assert "text_encoder/pytorch_model.bin " in commands[2]
    # Each would import torch once more: one is run, the sharded one.
    subprocess.run(commands[1].replace("python ", f"{sys.executable} "), shell=True, check=True)
    for name in ("unet", "text_encoder"):
        save_file(states[name], weights_file(folder, name))
    _, params = load_stable_diffusion(folder)
    assert_same(params, tiny[1])


def change_state(folder, name, change):
    file = weights_file(folder, name)
    state = load_file(file)
    change(state)
    save_file(state, file)


KERNEL = "encoder.conv_in.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop(KERNEL), f"vae lacks '{KERNEL}'"),
        (lambda state: state.update(more=torch.zeros(1)), "vae has tensors .*'more'"),
        (lambda state: state.update({KERNEL: torch.zeros(16, 3, 3, 1)}), f"'{KERNEL}'.*3, 3, 1"),
        (
            lambda state: state.update({KERNEL: state[KERNEL].to(torch.int8)}),
            f"'{KERNEL}'.*int8, not floating",
        ),
    ],
)
def test_wrong_tensors_are_found_before_any_is_read(folder, monkeypatch, change, words):
    change_state(folder, "vae", change)

    def read(*_, **__):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(stored_tensors.StoredTensor, "__array__", read)
    with pytest.raises(ValueError, match=words):
        load_stable_diffusion(folder)


@pytest.mark.parametrize(("dtype", "number"), [("float32", math.nan), ("bfloat16", -math.inf)])
def test_weights_that_are_not_finite_are_named(folder, dtype, number):
    def change(state):
        state[KERNEL] = state[KERNEL].to(getattr(torch, dtype))
        state[KERNEL].view(-1)[-1] = number

    change_state(folder, "vae", change)
    words = f"Tensor '{KERNEL}' in .*vae/.*safetensors has numbers that are NaN or infinite"
    with pytest.raises(ValueError, match=words):
        load_stable_diffusion(folder)
