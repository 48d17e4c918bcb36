"""A bucket without a network: `gs://` paths through epath and fsspec, as gcsfs would take them.

And a small data set of tensorflow-datasets.
"""

import pytest
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from diffusionrl_jax.data.emoji import world


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
