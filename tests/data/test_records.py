"""Records of tensorflow-datasets and of array_record files, whole, broken and evil."""

import json
import shutil
import socket
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from diffusionrl_jax.data.emoji import world
from diffusionrl_jax.data.prompt_sources import open_prompts
from tests.data.test_files import NAMES
from tests.data.test_prompt_sources import listed


def test_prepared_datasets(world_folder):
    folder, texts = world_folder
    unique = list(dict.fromkeys(texts))
    version = folder / "emoji_world" / str(world.EmojiWorld.VERSION)
    for name in (f"tfds:emoji_world?data_dir={folder}", f"tfds:{version}"):
        assert listed(open_prompts(name, 0)) == unique
    assert len(open_prompts(f"tfds:{version}?tfds_split=test", 0).prompts) <= 3
    everything = listed(open_prompts(f"array_record:{version}?field=prompt", 0))
    assert set(unique) < set(everything)


def test_broken_datasets(world_folder, tmp_path):
    folder, _ = world_folder
    version = folder / "emoji_world" / str(world.EmojiWorld.VERSION)
    with pytest.raises(FileNotFoundError, match=r"no split 'x': .* \['test', 'train'\]"):
        open_prompts(f"tfds:{version}?tfds_split=x", 0)
    with pytest.raises(ValueError, match="no feature 'x': set field to one of"):
        open_prompts(f"tfds:{version}?field=x", 0)
    with pytest.raises(ValueError, match="record 0 .* feature 'kind' is int, not one text"):
        open_prompts(f"tfds:{version}?field=kind", 0)
    with pytest.raises(ValueError, match="record 0 .* byte 1 is not UTF-8"):
        open_prompts(f"tfds:{version}?field=image", 0)
    with pytest.raises(FileNotFoundError, match="finds no 'dragons'"):
        open_prompts("tfds:dragons", 0)
    with pytest.raises(FileNotFoundError, match="has no array_record files"):
        open_prompts(f"array_record:{tmp_path}", 0)
    (tmp_path / "cut.array_record").write_bytes(b"not one")
    with pytest.raises(ValueError, match="array_record files are damaged"):
        open_prompts(f"array_record:{tmp_path}", 0)


def test_array_record_files_that_lack_a_part(world_folder, tmp_path):
    """Cut anywhere, or without any of its blocks: one line that names the file."""
    path = tmp_path / "a.array_record"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    texts = tfds.features.FeaturesDict({"prompt": tfds.features.Text()})
    draw = np.random.default_rng(0)
    for n in range(40):
        writer.write(texts.serialize_example({"prompt": f"{n} {draw.bytes(20_000).hex()}"}))
    writer.close()
    whole, block = path.read_bytes(), 2**16
    assert len(open_prompts(f"array_record:{tmp_path}", 0).prompts) == 40
    assert len(whole) > 10 * block
    cuts = [whole[:size] for size in (0, 100, block, len(whole) // 2, len(whole) - block)]
    cuts += [whole[:-1], whole[1:], whole[block:], whole[-block:], whole + b"\0"]
    cuts += [whole[: n * block] + whole[(n + 1) * block :] for n in range(1, 10)]
    cuts += [whole[:3000] + whole[3000 + many * block :] for many in (1, 2, 5)]
    for content in cuts:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"damaged .{path} lacks a part.*copy them anew"):
            open_prompts(f"array_record:{tmp_path}", 0)
    # What is damaged is noticed where it is read.
    path.write_bytes(whole[: 5 * block] + bytes(100) + whole[5 * block + 100 :])
    with pytest.raises(ValueError, match=rf"files are damaged .* of \['{path}'\]: copy them anew"):
        open_prompts(f"array_record:{tmp_path}", 0)


EVIL = "data.evil.payload.Feature"


def nested(inner):
    """Features within features, in both ways in which features.json is written."""
    core = "tensorflow_datasets.core.features"
    text = {"pythonClassName": f"{core}.text_feature.Text", "text": {}}
    sequence = f"{core}.sequence_feature.Sequence"
    return {
        "pythonClassName": f"{core}.features_dict.FeaturesDict",
        "featuresDict": {
            "features": {
                "prompt": text,
                "more": {"pythonClassName": sequence, "sequence": {"feature": inner}},
            }
        },
    }


@pytest.mark.parametrize(
    "features",
    [
        {"type": EVIL, "content": {}},
        {"pythonClassName": EVIL, "jsonFeature": {"json": "{}"}},
        {"python_class_name": EVIL, "json_feature": {"json": "{}"}},
        nested({"pythonClassName": EVIL, "jsonFeature": {"json": "{}"}}),
        nested(nested({"python_class_name": EVIL, "text": {}})),
        {
            "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "content": {"prompt": {"type": EVIL, "content": {}}},
        },
    ],
    ids=range(6),
)
@pytest.mark.parametrize("place", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("by_name", [False, True])
def test_no_code_is_imported_from_data(
    features, place, by_name, world_folder, tmp_path, monkeypatch
):
    folder, _ = world_folder
    root = tmp_path / "evil_world"
    version = root / str(world.EmojiWorld.VERSION)
    shutil.copytree(folder / "emoji_world" / version.name, version)
    if place == "features.json":
        (version / place).write_text(json.dumps(features))
    elif "type" in features:
        pytest.skip("only features.json may be written so")
    else:
        info = json.loads((version / place).read_text())
        (version / place).write_text(json.dumps(info | {"features": features}))
    package = tmp_path / "data" / "evil"
    package.mkdir(parents=True)
    (package / "payload.py").write_text("raise AssertionError('this was imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"tfds:evil_world?data_dir={tmp_path}" if by_name else f"tfds:{version}"
    with pytest.raises(ValueError, match=f"a feature's type is '{EVIL}', which is not tensorflow"):
        open_prompts(name, 0)
    assert not {"data", "data.evil", "data.evil.payload"} & set(sys.modules)
    assert len(open_prompts(f"tfds:{folder}/emoji_world/{version.name}", 0).prompts)


@pytest.mark.parametrize("name", ["huggingface:squad", "robotics:fractal", "mnist"])
def test_no_code_or_data_is_fetched_for_a_name(name, tmp_path, monkeypatch):
    def connect(*arguments):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    with pytest.raises(FileNotFoundError, match=f"finds no '{name}' that is prepared"):
        open_prompts(f"tfds:{name}?data_dir={tmp_path}", 0)


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b"\xff", b"[" * 10**5])
def test_broken_descriptions_of_a_dataset(file, content, world_folder, tmp_path):
    folder, _ = world_folder
    version = tmp_path / str(world.EmojiWorld.VERSION)
    shutil.copytree(folder / "emoji_world" / version.name, version)
    (version / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"'tfds:{version}': (tensorflow-datasets cannot|.* '')"):
        open_prompts(f"tfds:{version}", 0)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_records_in_folders_with_any_name(name, world_folder, tmp_path):
    made, texts = world_folder
    unique = list(dict.fromkeys(texts))
    shutil.copytree(made, tmp_path / name)
    version = tmp_path / name / "emoji_world" / str(world.EmojiWorld.VERSION)
    if name == "caf\udce9":
        for kind in ("tfds", "array_record"):
            with pytest.raises(ValueError, match="read by names in UTF-8 only"):
                open_prompts(f"{kind}:{version}?field=prompt", 0)
        return
    assert listed(open_prompts(f"tfds:{version}", 0)) == unique
    assert set(listed(open_prompts(f"array_record:{version}?field=prompt", 0))) > set(unique)
    by_name = f"tfds:emoji_world?data_dir={tmp_path / name}"
    if "[" in name:
        with pytest.raises(ValueError, match="features.json, below"):
            open_prompts(by_name, 0)
    else:
        assert listed(open_prompts(by_name, 0)) == unique


def test_a_file_whose_name_is_a_range_of_records(world_folder, tmp_path):
    (record,) = world_folder[0].glob("emoji_world/*/*train*array_record*")
    shutil.copy(record, tmp_path / "x.array_record[0:2]")
    with pytest.raises(ValueError, match="would be read as a range of records: rename it"):
        open_prompts(f"array_record:{tmp_path}?field=prompt", 0)
