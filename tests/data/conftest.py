"""A bucket without a network: `gs://` paths through epath and fsspec, as gcsfs would take them.

And a small data set of tensorflow-datasets, and a hub on loopback.
"""

import json

import huggingface_hub
import pytest
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from diffusionrl_jax.data.emoji import world
from tests import hub as stand_in

# The hub's two repositories.
NAME, OTHER = "me/thing", "me/other"


class Buckets(DirFileSystem):
    """A folder whose folders are the buckets."""

    cachable = False

    def _join(self, path):
        strip = lambda one: one.removeprefix("gs://")
        return super()._join(
            [strip(one) for one in path] if isinstance(path, list) else strip(path)
        )


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The name of an empty bucket."""
    (tmp_path / "buckets" / "data").mkdir(parents=True)
    buckets = Buckets(str(tmp_path / "buckets"), LocalFileSystem(auto_mkdir=True))
    monkeypatch.setattr(backend._FileSystemSpecBackend, "fs", lambda self, path: buckets)
    return "gs://data"


@pytest.fixture(scope="module")
def world_folder(tmp_path_factory):
    """A prepared data set of six pictures, and its prompts."""
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "SPLITS", {"train": 6, "test": 3})
        examples = list(world.load("train", str(folder)))
    return folder, [example["prompt"].decode() for example in examples]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub, with two repositories, as this process' one, with an empty cache."""
    for name in ("thing", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"use": name}))
        (tmp_path / name / "large.safetensors").write_bytes(bytes(range(256)) * 8)
        (tmp_path / name / "readme.txt").write_text("not needed")
    with stand_in.serve({NAME: tmp_path / "thing", OTHER: tmp_path / "other"}) as server:
        stand_in.use(monkeypatch, server.address, tmp_path / "home" / "hub")
        yield server
    monkeypatch.undo()
    huggingface_hub.utils.reset_sessions()
