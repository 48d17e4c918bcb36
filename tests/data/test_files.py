"""What a user may name, against the operating system's own idea of it."""

import contextlib
import os
import pathlib
import pwd
import resource
import threading

import fsspec
import pytest
from etils import epath
from etils.epath import backend
from fsspec.registry import _registry

from diffusionrl_jax.data import files

# What a file system takes; the last is not UTF-8.
NAMES = [
    *("a[1]", "[0:2]", "a]b[", "a*b", "what?", "a@b", "a@2", "a#b", "100%25", "%s", "a;b", "a,b"),
    *("a=b", "a b", " lead", "trail ", "q'\"`", "new\nline", "-dash", "~tilde", "a:b", "{a}"),
    *("$HOME", "a\\b", ".hidden", "日本", "😀", "x" * 255, "caf\udce9"),
]


@contextlib.contextmanager
def full_disk(free=100):
    """No file may grow beyond so many bytes, which fails as a disk that is full does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_that_a_file_system_takes(name, tmp_path, monkeypatch):
    folder = tmp_path / name
    folder.mkdir()
    for content in (b"old", b"new"):
        files.write_whole(files.as_path(f"{folder}/{name}", "--output"), content)
        assert (folder / name).read_bytes() == content
        assert os.listdir(folder) == [name]
    assert files.prepare_file(f"{folder}/{name}", "--json") == epath.Path(folder / name)
    assert files.is_there(str(folder))
    (folder / "x.txt").touch()
    assert files.matching(folder, "x.*") == [epath.Path(folder / "x.txt")]
    monkeypatch.chdir(tmp_path)
    assert os.path.samefile(files.as_path(f"./{name}", "--workdir"), folder)
    # Understood once, it stays what it is.
    path = files.as_path(f"./{name}", "--workdir")
    assert files.as_path(str(path), "--workdir") == path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a//b/", "/a/b"),
        ("//a/./b", "/a/b"),
        ("/a/x://y", "/a/x:/y"),
        ("/a/../b", "/a/../b"),  # A link may lie before the dots.
        ("gs://bucket/a[1]/~b", "gs://bucket/a[1]/~b"),
        ("~/a", f"{os.path.expanduser('~')}/a"),
        (f"~{pwd.getpwuid(os.getuid()).pw_name}/a", f"{pwd.getpwuid(os.getuid()).pw_dir}/a"),
        ("a/~b", f"{os.getcwd()}/a/~b"),
        (pathlib.Path("/a"), "/a"),
    ],
    ids=str,
)
def test_what_is_written_is_what_the_system_would_open(text, expected, bucket):
    assert str(files.as_path(text, "--workdir")) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "^--workdir is empty"),
        ("/a\0b", r"--workdir='/a\\x00b' has a NUL"),
        ("file:///a", "write the path alone, without file://"),
        ("https://a/b", "https:// is not known; .* gs://"),
        ("https://me:secret@a/b", "^--workdir=https://a/b: https:// is not known"),
        ("nope://a", "nope:// is not known"),
        ("gs://", "gs:// names no bucket"),
        ("~nobody_at_all/x", r"no user 'nobody_at_all'; write \./~nobody_at_all/x"),
        (f"/none/{'x' * 256}/y", "is too long: a name may have 255 bytes"),
        (f"/none/{'é' * 128}", "is too long"),
        ("/a" * 2048, "and a path 4095"),
    ],
)
def test_what_nothing_can_have_as_its_path(text, message):
    with pytest.raises(ValueError, match=message) as error:
        files.as_path(text, "--workdir")
    assert len(str(error.value)) < 300


def test_a_bucket_without_its_package(monkeypatch):
    def exists(path):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(type(epath.Path("gs://b")), "exists", exists)
    with pytest.raises(ValueError, match="--workdir=gs://b/a cannot.*pip install gcsfs"):
        files.as_path("gs://b/a", "--workdir")


@pytest.mark.parametrize(
    "scheme, protocols",  # Those of the classes in gcsfs, s3fs and adlfs.
    [("gs", ("gs", "gcs")), ("s3", ("s3", "s3a")), ("az", "abfs"), ("memory", "memory")],
)
def test_what_other_processes_write_to_buckets_is_seen(scheme, protocols, monkeypatch):
    """epath's file system of a bucket lists it anew; others, as fsspec has them, may remember."""

    class Listing(fsspec.AbstractFileSystem):
        protocol = protocols

        def __init__(self, finalize_on_close=False, **options):
            super().__init__(**options)

    for name in ("gcs", "s3", "az", "file"):  # By these epath asks fsspec for them.
        monkeypatch.setitem(_registry, name, Listing)
    system = backend._FileSystemSpecBackend().fs(f"{scheme}://bucket/folder")
    assert type(system) is Listing
    system.dircache["bucket/folder"] = []
    assert ("bucket/folder" in system.dircache) == (scheme == "memory")


def test_names_in_a_folder_that_looks_like_a_pattern(tmp_path, bucket):
    for root in (f"{tmp_path}/a[1]*?", f"{bucket}/a[1]"):
        folder = epath.Path(root)
        assert files.matching(folder, "*") == []
        folder.mkdir(parents=True)
        for name in ("b.txt", "a.txt", "c[2].txt", ".d.txt", "e.png"):
            (folder / name).write_text("")
        found = lambda pattern, folder=folder: [
            path.name for path in files.matching(folder, pattern)
        ]
        assert found("*.txt") == ["a.txt", "b.txt", "c[2].txt"]
        assert found("c[2]*") == ["c[2].txt"]
        assert found("?.txt") == []
        assert found(".*") == [".d.txt"]


def test_links_are_written_through(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path / "far")
    (tmp_path / "link").symlink_to("folder/target")
    for content in (b"1", b"2"):
        files.write_whole(files.prepare_file(str(tmp_path / "link"), "--json"), content)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "target").read_bytes() == b"2"
    assert sorted(os.listdir(tmp_path / "far")) == ["target"]


def test_pipes_are_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    path = files.prepare_file(str(tmp_path / "pipe"), "--json")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    files.write_whole(path, b"content")
    reader.join(20)
    assert read == [b"content"]


def test_outputs_that_cannot_be_written_are_named_at_once(tmp_path):
    (tmp_path / "file").write_text("old")
    for path, kind, message in (
        (tmp_path, IsADirectoryError, "--json=.* is a folder: name a file in it"),
        (tmp_path / "none" / "x", FileNotFoundError, "no folder .*/none for --json: make it"),
        (tmp_path / "file" / "x", FileNotFoundError, "no folder .*/file for --json"),
        ("/proc/x.json", OSError, r"--json=/proc/x.json cannot be written \(.*\): choose"),
    ):
        with pytest.raises(kind, match=message):
            files.prepare_file(str(path), "--json")
    files.prepare_file(str(tmp_path / "file"), "--json")
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with full_disk():
        message = f"Cannot write {path} .*: what is there stays; make room, and the same command"
        with pytest.raises(OSError, match=message):
            files.write_whole(path, bytes(1000))
        with pytest.raises(OSError, match="--json=.* cannot be written .File too large"):
            files.prepare_file(str(tmp_path / "other"), "--json")
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_text() == "old"


def test_what_a_killed_program_leaves_is_removed_and_nothing_else(tmp_path):
    kept = ["mine.partial", "notes.partial.txt", "a.txt"]
    for name in kept:
        (tmp_path / name).touch()
    files.partial_path(epath.Path(tmp_path / "x")).write_bytes(b"")
    (tmp_path / "latents-00001.safetensors.0a1b2c3d.partial").touch()
    folder = files.partial_path(epath.Path(tmp_path / "x"))
    folder.mkdir()
    (folder / "file").touch()
    files.remove_partials(epath.Path(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_a_folder_is_tried_before_compute(tmp_path):
    files.prepare_folder(str(tmp_path / "new" / "run"), "--workdir")
    assert list((tmp_path / "new" / "run").iterdir()) == []
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run", "/proc/run"):
        with pytest.raises(ValueError, match="choose a folder that you can write to") as caught:
            files.prepare_folder(str(workdir), "--workdir")
        assert str(workdir) in str(caught.value)
