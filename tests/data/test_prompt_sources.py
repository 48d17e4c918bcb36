"""Every kind of source by its name in a config; files are written by Python and pyarrow."""

import pytest
from etils import epath

from diffusionrl_jax.data import prompts
from diffusionrl_jax.data.prompt_files import read_prompts
from diffusionrl_jax.data.prompt_sources import open_prompts, prompt_categories
from tests.data.test_files import NAMES
from tests.data.test_prompt_files import (
    TEXTS,
    UNIQUE,
    listed,
    numbered,
    write,
    write_jsonl,
    write_parquet,
)


def test_prompts_of_files_in_their_order(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", field="caption")
    assert read_prompts(f"{path}?field=caption") == (
        *UNIQUE[:4],
        "an apple",
        *UNIQUE[:-2:-1],
        "spaces",
    )
    write_parquet(tmp_path / "q.parquet", ["b", "a", "b"])
    assert read_prompts(f"{tmp_path}/*.parquet") == ("b", "a", "b")
    with pytest.raises(ValueError, match=r"the options \['field'\] are unknown; use none"):
        read_prompts(f"{write(tmp_path / 'p.txt', b'a')}?field=caption")
    with pytest.raises(ValueError, match=r"the options \['split'\] are unknown"):
        read_prompts(f"{path}?split=test")
    with pytest.raises(ValueError, match="has no prompt"):
        read_prompts(write(tmp_path / "e.json", b"[]"))


def test_several_files_are_one_source(tmp_path):
    for n, part in enumerate((TEXTS[:3], TEXTS[3:])):
        write_parquet(tmp_path / f"p-{n}.parquet", part)
    assert listed(open_prompts(f"{tmp_path}/p-*.parquet", 0)) == UNIQUE


def test_categories_of_a_table_are_those_of_its_columns(tmp_path):
    name = f"{write(tmp_path / 'p.csv', b'Prompt,kind')}?field=Prompt"
    assert prompt_categories(name) == prompt_categories(name, []) == {}
    write(tmp_path / "p.csv", b"Prompt,kind\na cat,Animals\na car,\n")
    assert prompt_categories(name, ["kind"]) == {
        "a cat": {"kind": "Animals"},
        "a car": {"kind": ""},
    }
    for other in ("emoji:pairs", "objects:test", "hub:a/b/c.csv"):
        with pytest.raises(ValueError, match=f"{other} has no columns kind, size: name none, or"):
            prompt_categories(other, ["kind", "size"])


def test_files_in_buckets(bucket, tmp_path):
    for n, part in enumerate((TEXTS[:3], TEXTS[3:])):
        write_parquet(tmp_path / "p.parquet", part)
        epath.Path(f"{bucket}/p-{n}.parquet").write_bytes((tmp_path / "p.parquet").read_bytes())
    assert listed(open_prompts(f"{bucket}/p-*.parquet", 0)) == UNIQUE
    assert listed(open_prompts(f"{bucket}/p-0.parquet?held_out=1", 0)) != UNIQUE[:3]
    epath.Path(f"{bucket}/p.jsonl").write_bytes(b'{"prompt": 1}')
    with pytest.raises(ValueError, match="gs://data/p.jsonl, line 1: the field 'prompt' is int"):
        open_prompts(f"{bucket}/p.jsonl", 0)
    with pytest.raises(FileNotFoundError, match="no file gs://data/none.txt"):
        open_prompts(f"{bucket}/none.txt", 0)


def test_templates(tmp_path):
    words = write(tmp_path / "w.txt", b"judge\nartist\njudge\n")
    name = f"template:a portrait of {{article}} {{noun}}?words={words}"
    assert listed(open_prompts(name, 0)) == ["a portrait of a judge", "a portrait of an artist"]
    parts = [open_prompts(f"{name}&held_out=1&split={s}", 0) for s in ("train", "test")]
    assert sorted(listed(parts[0]) + listed(parts[1])) == sorted(listed(open_prompts(name, 0)))
    with pytest.raises(ValueError, match=r"has no words: add \?words=FILE"):
        open_prompts("template:a {noun}", 0)
    with pytest.raises(FileNotFoundError, match="none.txt"):
        open_prompts("template:a {noun}?words=none.txt", 0)


def test_epochs_hosts_and_resumption(tmp_path):
    path = write_parquet(tmp_path / "p.parquet", numbered(50) * 2, row_group_size=7)
    source = open_prompts(path, 7)
    epochs = [[source[50 * epoch + i] for i in range(50)] for epoch in range(3)]
    assert all(sorted(epoch) == sorted(numbered(50)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3, "every epoch must have its own order"
    assert [open_prompts(path, 8)[i] for i in range(50)] != epochs[0]
    batches = [prompts.prompt_batch(source, step, 12, group_size=2) for step in range(12)]
    resumed = open_prompts(path, 7)  # On this host or another.
    for step in (11, 8, 9):
        assert prompts.prompt_batch(resumed, step, 12, group_size=2) == batches[step]
    assert [p for b in batches for p in b[::2]] == [source[i] for i in range(72)]


def test_names_that_cannot_be_read(tmp_path):
    path = write(tmp_path / "p.txt", b"a\nb")
    for name, words in {
        str(tmp_path / "none.txt"): "There is no file .*none.txt: mend the path",
        str(tmp_path / "*.jsonl"): r"No file matches .*\*.jsonl",
        str(tmp_path): "is a folder: name a file in it",
        f"{path}?splt=test": r"the options \['splt'\] are unknown; use only",
        f"{path}?field=text": r"the options \['field'\] are unknown",
        f"{path}?split": "cannot read the option 'split': write option=value",
        f"{path}?held_out=1&held_out=2": "says held_out twice",
        f"{path}?held_out=-1": "held_out=-1 must be a whole number",
        f"{path}?split=valid": "unknown split 'valid'",
        f"{path}?split=test": "held_out=0 of 2 different prompts: hold out at least 1",
        f"{path}?held_out=2": "held_out=2 of 2 different prompts",
        "": "names nothing",
        "array_record:gs://data/laion": "'array_record:gs://.*must be on a file system: copy",
        "tfds:gs://data/laion/1.0.0": "'tfds:gs://.*must be on a file system: copy",
        "tfds:laion?data_dir=gs://data": "'tfds:laion.*must be on a file system: copy",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            open_prompts(name, 0)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_files_and_folders_with_any_name(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    for n, part in enumerate((TEXTS[:3], TEXTS[3:])):
        write_parquet(tmp_path / "p.parquet", part)  # pyarrow itself takes UTF-8 names alone.
        (tmp_path / "p.parquet").rename(folder / f"p-{n}.parquet")
    assert listed(open_prompts(f"{folder}/p-*.parquet?field=prompt", 0)) == UNIQUE
    assert len(listed(open_prompts(f"{folder}/p-0.parquet?held_out=1", 0))) == 2
    write_jsonl(folder / "j.jsonl")
    assert listed(open_prompts(f"{folder}/j.jsonl", 0)) == UNIQUE
    write(folder / name, b"judge\nartist\n")
    assert listed(open_prompts(f"{folder}/{name}", 0)) == ["judge", "artist"]
    words = f"template:a {{noun}}?words={folder}/{name}"
    assert listed(open_prompts(words, 0)) == ["a judge", "a artist"]
    assert listed(open_prompts(f"{words}&held_out=1", 0)) != listed(open_prompts(words, 0))


@pytest.mark.parametrize(
    "name", ["https://a/b.txt", "file:///b.txt", "array_record:https://a", "tfds:https://a"]
)
def test_addresses_are_no_paths(name):
    with pytest.raises(
        ValueError, match="is not known; give a path|without file://|must be on a file"
    ):
        open_prompts(name, 0)
