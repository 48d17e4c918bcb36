"""Every kind of source by its name in a config; files are written by Python and pyarrow."""

import hashlib
import os
import re

import pytest
from etils import epath

from diffusionrl_jax import assets
from diffusionrl_jax.data import prompt_index, prompts
from diffusionrl_jax.data.prompt_files import read_prompts
from diffusionrl_jax.data.prompt_sources import open_prompts
from tests.data.test_files import NAMES, full_disk
from tests.data.test_prompt_files import TEXTS, UNIQUE, listed, write, write_jsonl, write_parquet


def numbered(count):
    return [f"prompt {n}" for n in range(count)]


def test_an_index_of_lines_is_not_taken_for_one_of_rows(tmp_path):
    """Files of other kinds with the same content have other prompts."""
    content = b"prompt\nan apple\n"
    names = ("p.txt", "p.csv", "p.tsv")
    found = [listed(open_prompts(write(tmp_path / name, content), 0)) for name in names]
    assert found == [["prompt", "an apple"], ["an apple"], ["an apple"]]


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


def test_objects_of_the_paper():
    train, test = open_prompts("objects:train", 0), open_prompts("objects:test", 0)
    assert len(train.prompts) == 450 * 449 * 5
    assert len(test.prompts) == 82 * 81 * 5
    assert len(open_prompts("objects:all", 0).prompts) == 532 * 531 * 5
    said = {}
    for split, source in (("train", train), ("test", test)):
        # One relation of every 13th pair, in which all objects are first and second.
        alike = [source.prompts[n] for n in range(0, len(source.prompts), 5 * 13)]
        pairs = {re.fullmatch("an? (.+) and an? (.+)", prompt).groups() for prompt in alike}
        assert len(pairs) == len(alike)
        assert all(first != second for first, second in pairs)
        said[split] = {first for first, _ in pairs}
        assert said[split] == {second for _, second in pairs}
    assert {split: len(objects) for split, objects in said.items()} == {"train": 450, "test": 82}
    every = assets.resolve("asset:words/objects.txt").read_text().splitlines()
    assert said["train"] | said["test"] == set(every)
    of_first_pair = [test.prompts[n].split(" ", 2)[2] for n in range(5)]
    assert len(set(of_first_pair)) == 5
    with pytest.raises(ValueError, match="use objects:train, objects:test or objects:all"):
        open_prompts("objects:valid", 0)


def test_occupations_of_the_paper():
    every, train, test = (open_prompts(f"occupations:{s}", 0) for s in ("all", "train", "test"))
    assert len(listed(every)) == 100
    assert len(listed(test)) == 20
    assert sorted(listed(train) + listed(test)) == sorted(listed(every))
    assert "a portrait of an accountant" in listed(every)


def test_held_out_prompts_are_those_of_the_smallest_hashes(tmp_path):
    texts = numbered(200)
    by_hash = sorted(texts, key=lambda t: hashlib.blake2b(t.encode(), digest_size=8).digest()[::-1])
    path = write_jsonl(tmp_path / "p.jsonl", texts)
    test = open_prompts(f"{path}?held_out=20&split=test", 0)
    train = open_prompts(f"{path}?held_out=20&split=train", 0)
    assert set(listed(test)) == set(by_hash[:20])
    assert set(listed(train)) == set(by_hash[20:])
    # In another order, with copies, in another kind of file: the same prompts are held out.
    path = write_parquet(tmp_path / "p.parquet", (texts * 2)[::-1])
    assert set(listed(open_prompts(f"{path}?split=test&held_out=20", 0))) == set(by_hash[:20])


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


def test_index_is_made_once_and_anew_when_damaged_or_changed(tmp_path, monkeypatch):
    monkeypatch.setenv(prompt_index.CACHE_VARIABLE, str(tmp_path / "cache"))
    path = write_jsonl(tmp_path / "p.jsonl", numbered(10))
    open_prompts(path, 0)
    (index,) = (tmp_path / "cache").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(prompt_index, "write_index", lambda *_: pytest.fail("made anew"))
        assert listed(open_prompts(path, 0)) == numbered(10)
    for content in (index.read_bytes()[:-1], b"", b"x" * 100):
        index.write_bytes(content)
        assert listed(open_prompts(path, 0)) == numbered(10)
        assert [file.name for file in (tmp_path / "cache").iterdir()] == [index.name]
    write_jsonl(tmp_path / "p.jsonl", numbered(11))
    assert listed(open_prompts(path, 0)) == numbered(11)


def test_a_broken_source_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv(prompt_index.CACHE_VARIABLE, str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="line 2"):
        open_prompts(write(tmp_path / "p.jsonl", b'{"prompt": "a"}\n{'), 0)
    assert not list((tmp_path / "cache").iterdir())
    (tmp_path / "file").touch()
    monkeypatch.setenv(prompt_index.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(OSError, match="Cannot write the cache folder .*set DIFFUSIONRL_JAX_CACHE"):
        open_prompts(write_jsonl(tmp_path / "p.jsonl"), 0)


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


def test_memory_is_bounded(tmp_path, monkeypatch):
    """Allocations of Python and NumPy; Arrow's own are measured by benchmarks/prompts.py."""
    import tracemalloc

    monkeypatch.setattr(prompt_index, "ROWS_AT_ONCE", 512)
    count, length = 10_000, 1000
    rows = (f"{n % (count // 2):<{length - 1}}." for n in range(count))
    tracemalloc.start()
    try:
        prompt_index.write_index(rows, tmp_path / "index")
        index = prompt_index.PromptIndex(tmp_path / "index")
        assert index[1234].split() == ["1234", "."]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (index.rows, len(index)) == (count, count // 2)
    assert os.path.getsize(tmp_path / "index") > count // 2 * length
    assert peak < 0.3 * count * length


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


def test_a_flipped_bit_in_an_index_is_noticed_and_made_anew(tmp_path, monkeypatch, caplog):
    cache = tmp_path / "cache[1] ?"
    monkeypatch.setenv("DIFFUSIONRL_JAX_CACHE", str(cache))
    source = write_jsonl(tmp_path / "p.jsonl")
    written = listed(open_prompts(source, 0))
    (path,) = cache.iterdir()
    content = path.read_bytes()
    for place in range(len(content)):
        flipped = bytes([content[place] ^ 1 << place % 8])
        path.write_bytes(content[:place] + flipped + content[place + 1 :])
        with pytest.raises(ValueError, match="damaged, or of an earlier version: remove it"):
            prompt_index.PromptIndex(path)
    caplog.clear()
    assert listed(open_prompts(source, 0)) == written
    assert len(caplog.records) == 1
    assert path.read_bytes() == content
    opened = open_prompts(source, 0)
    path.write_bytes(content.replace(b"an apple", b"an apply"))
    with pytest.raises(ValueError, match="is damaged"):
        listed(opened)


def test_half_written_indices_are_removed_when_they_are_old(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSIONRL_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    old, young = (tmp_path / "cache" / f"{n}.partial" for n in range(2))
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    open_prompts(write(tmp_path / "p.txt", b"a\n"), 0)
    assert not old.exists()
    assert young.exists()


def test_an_index_on_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSIONRL_JAX_CACHE", str(tmp_path / "cache"))
    source = write(tmp_path / "p.txt", "\n".join(numbered(1000)).encode())
    with full_disk(), pytest.raises(OSError, match="Cannot write .*cache.*the same command"):
        open_prompts(source, 0)
    assert list((tmp_path / "cache").iterdir()) == []
    assert listed(open_prompts(source, 0)) == numbered(1000)


@pytest.mark.parametrize("folder", ["gs://bucket/cache", "https://a", "~nobody_at_all"])
def test_cache_folders_that_cannot_be(folder, monkeypatch, bucket):
    monkeypatch.setenv("DIFFUSIONRL_JAX_CACHE", folder)
    with pytest.raises(ValueError, match=r"^\$DIFFUSIONRL_JAX_CACHE="):
        prompt_index.cache_folder()
