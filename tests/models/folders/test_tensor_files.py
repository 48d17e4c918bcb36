"""Files of weights: shards, pickles, and headers that lie."""

import json
import shlex
import subprocess

import fsspec
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from safetensors.torch import load_file

from diffusionrl_jax.models.folders import tensor_files, weights


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
