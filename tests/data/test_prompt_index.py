"""The index of a source's prompts: whole, damaged, split and in bounded memory."""

import hashlib
import os

import pytest

from diffusionrl_jax.data import prompt_index
from diffusionrl_jax.data.prompt_sources import open_prompts
from tests.data.test_files import full_disk
from tests.data.test_prompt_files import listed, numbered, write, write_jsonl, write_parquet


def test_an_index_of_lines_is_not_taken_for_one_of_rows(tmp_path):
    """Files of other kinds with the same content have other prompts."""
    content = b"prompt\nan apple\n"
    names = ("p.txt", "p.csv", "p.tsv")
    found = [listed(open_prompts(write(tmp_path / name, content), 0)) for name in names]
    assert found == [["prompt", "an apple"], ["an apple"], ["an apple"]]


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


def test_half_written_indices_that_others_remove_meanwhile(tmp_path, monkeypatch):
    """A link to nothing is listed and then not there, as what another process has just moved."""
    monkeypatch.setenv("DIFFUSIONRL_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "0.partial").symlink_to("nothing")
    assert listed(open_prompts(write(tmp_path / "p.txt", b"a\n"), 0)) == ["a"]


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
