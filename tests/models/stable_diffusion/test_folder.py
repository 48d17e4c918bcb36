"""Every way in which a diffusers folder can be stored, and every way in which it can be wrong."""

import functools
import json
import math
import shlex
import subprocess
import sys

import fsspec
import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from etils import epath
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from safetensors.torch import load_file, save_file

from diffusionrl_jax.data import stored_tensors
from diffusionrl_jax.distributed import mesh as distributed_mesh
from diffusionrl_jax.models.folders import hub, tensor_files, weights
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


@pytest.mark.parametrize(
    "pattern",
    ["pytorch_model.{variant}-{shard}.bin", "pytorch_model-{shard}.{variant}.bin"],
)
def test_all_shards_of_one_precision_are_converted(tmp_path, pattern):
    shards = ["00001-of-00002", "00002-of-00002"]
    names = [
        pattern.format(variant=variant, shard=shard)
        for variant in ("fp16", "non_ema")
        for shard in shards
    ]
    for name in (*names, "training_args.bin"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError) as error:
        tensor_files.open_networks({epath.Path(tmp_path): "model"})
    (command,) = str(error.value).split("\n")[-1].split(" && ")
    files = [word for word in shlex.split(command) if word.startswith(str(tmp_path))]
    assert files == [str(tmp_path / name) for name in (*names[:2], "model.safetensors")]


def test_commands_are_safe_to_paste_whatever_the_folder_is_called(tmp_path):
    folder = tmp_path / "it's $(touch pasted) `touch pasted`; touch pasted & \"#\n"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"no pickle")
    with pytest.raises(FileNotFoundError) as error:
        tensor_files.open_networks({epath.Path(folder): "model"})
    _, _, command = str(error.value).partition("with:\n")
    assert shlex.split(command)[3:] == [str(folder / "model.bin"), f"{folder}/model.safetensors"]
    show = command.replace(tensor_files.CONVERSION, "printf %s,")
    shown = subprocess.run(show, shell=True, cwd=tmp_path, capture_output=True, check=True).stdout
    assert shown.decode() == f"{folder}/model.bin,{folder}/model.safetensors,"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_pickled_weights_in_a_bucket_are_to_be_copied_first(monkeypatch):
    """PyTorch could not open what lies there."""
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", lambda *_: memory)
    monkeypatch.setattr(memory, "store", {})
    monkeypatch.setattr(memory, "pseudo_dirs", [""])
    pickled = epath.Path("gs://bucket/model/unet/diffusion_pytorch_model.bin")
    pickled.parent.mkdir(parents=True)
    pickled.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="Copy the model's folder from.*to a disk") as error:
        tensor_files.open_networks({pickled.parent: pickled.stem})
    assert str(pickled) in str(error.value) and "torch.load" not in str(error.value)


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


@pytest.fixture
def sharded(tmp_path):
    """A folder of two shards and their index."""
    weights.write_safetensors(tmp_path / "model-1.safetensors", {"a": np.ones(2)})
    weights.write_safetensors(tmp_path / "model-2.safetensors", {"b": np.zeros((2, 3))})
    places = {"a": "model-1.safetensors", "b": "model-2.safetensors"}

    def write(**changes):
        index = {"weight_map": {**places, **changes}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        return tensor_files.open_networks({epath.Path(tmp_path): "model"})[tmp_path.name]

    return write


def test_shards(sharded):
    tensors = sharded()
    assert {name: tensor.shape for name, tensor in tensors.items()} == {"a": (2,), "b": (2, 3)}
    with pytest.raises(ValueError, match="model-2.safetensors lacks 'c'"):
        sharded(c="model-2.safetensors")
    with pytest.raises(FileNotFoundError, match="model-3.safetensors does not exist"):
        sharded(c="model-3.safetensors")
    with pytest.raises(ValueError, match="no weight_map to safetensors files beside it"):
        sharded(c="../elsewhere/model.safetensors")


def test_a_tensor_in_two_shards(sharded, tmp_path):
    weights.write_safetensors(
        tmp_path / "model-2.safetensors", {"b": np.zeros((2, 3)), "a": np.ones(2)}
    )
    with pytest.raises(ValueError, match="'a' lies in .*model-2.safetensors too"):
        sharded()


def write_header(path, header, data=b"0" * 12):
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data)


def entry(name, shape, *offsets, dtype="F32"):
    stored = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    return f"{json.dumps(name)}: {json.dumps(stored)}"


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ([entry("a", [3], 0, 12), entry("a", [3], 0, 12)], "has 'a' twice"),
        ([entry("a", [2], 0, 8), entry("b", [2], 4, 12)], "'b' begins at byte 4, where 8 comes"),
        ([entry("a", [3], 0, 12), entry("b", [3], 0, 12)], "'b' begins at byte 0, where 12 comes"),
        ([entry("a", [1], 0, 4), entry("b", [1], 8, 12)], "'b' begins at byte 8, where 4 comes"),
        ([entry("a", [2], 0, 8)], "end at byte 8 of the data's 12"),
        ([entry("a", [-3], 0, 12)], "-3 is no whole number of 0 or more"),
        ([entry("a", [-1, -3], 0, 12)], "-1 is no whole number"),
        ([entry("a", [3.0], 0, 12)], "3.0 is no whole number"),
        ([entry("a", ["3"], 0, 12)], "3 is no whole number"),
        ([entry("a", [True, 3], 0, 12)], "True is no whole number"),
        ([entry("a", [3] + [1] * 64, 0, 12)], "has 65 axes"),
        ([entry("a", [3], 0.0, 12.0)], "0.0 is no whole number"),
        ([entry("a", [3], 12, 0)], "ends at byte"),
        ([entry("a", [3], 0)], "not enough values"),
        (["[" * 50_000], "safetensors file"),
        (['"a": ' + "[" * 50_000 + "]" * 50_000], "safetensors file"),
        (['"__metadata__": {"format": {}}', entry("a", [3], 0, 12)], "metadata are no strings"),
        (['"__metadata__": []', entry("a", [3], 0, 12)], "safetensors file"),
    ],
    ids=range(18),
)
def test_headers_that_no_library_opens(tmp_path, header, words):
    path = tmp_path / "model.safetensors"
    write_header(path, "{" + ", ".join(header) + "}")
    with pytest.raises(ValueError, match=f"is not a whole .*{words}") as error:
        tensor_files.read_header(path)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)
    # Theirs takes one of two entries of a name, and PyTorch more axes than NumPy.
    if words not in ("has 'a' twice", "has 65 axes"):
        with pytest.raises(Exception):  # noqa: B017
            load_file(path)


def test_header_that_lies(tmp_path):
    """Offsets that do not fit the shape, or the file, are found without reading the tensors."""
    path = tmp_path / "model.safetensors"
    for offsets, words in (([0, 8], "has 8 bytes, its shape 12"), ([0, 900], "ends at byte")):
        write_header(path, "{" + entry("a", [3], *offsets) + "}")
        with pytest.raises(ValueError, match=words):
            tensor_files.read_header(path)
