"""A workdir may be in a bucket: what a run writes there is found there again."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from etils.epath import backend

from diffusionrl_jax.data.files import prepare_folder
from diffusionrl_jax.monitoring.metrics import MetricWriter, read_rows
from diffusionrl_jax.runs import trained
from diffusionrl_jax.runs.checkpoint_records import read_score
from diffusionrl_jax.runs.checkpoints import Checkpoints
from diffusionrl_jax.runs.provenance import write_run_information
from tests.processes import shapes_of

WORKDIR = "gs://bucket/runs/first"


def test_what_is_written_once(bucket):
    prepare_folder(WORKDIR, "--workdir")
    assert not bucket, "the probe is removed"
    write_run_information(WORKDIR, {"seed": 3, "model": "a", "tasks": {}, "evaluation": {}})
    assert trained.read_config(WORKDIR).seed == 3
    assert set(bucket) == {f"{WORKDIR}/config.json", f"{WORKDIR}/versions.json"}


def test_metrics_of_a_resumed_run(bucket):
    for first in (0, 2):
        writer = MetricWriter(WORKDIR, first)
        for step in range(first, 4):
            writer.scalars(step, {"reward": first + step})
        writer.images(3, {"picture": np.zeros((4, 4, 3), np.uint8)})
        writer.close()
    assert [row["reward"] for row in read_rows(WORKDIR)] == [0, 1, 4, 5]
    events = list((epath.Path(WORKDIR) / "tensorboard").iterdir())
    assert len(events) == 2
    assert all(path.stat().length > 0 for path in events)


def test_a_bucket_that_cannot_be_reached(monkeypatch):
    def refuse(self, name):
        raise PermissionError("no credentials")

    monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", refuse)
    with pytest.raises(ValueError, match="gs://bucket/.* cannot be written to .*no credentials"):
        prepare_folder(WORKDIR, "--workdir")


@pytest.fixture
def cloud(monkeypatch):
    """A Cloud Storage of this machine's, for gcsfs and for TensorStore."""
    pytest.importorskip("gcsfs")
    servers = pytest.importorskip("gcp_storage_emulator.server")
    address = "http://localhost:9923"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
    server = servers.create_server("localhost", 9923, in_memory=True, default_bucket="bucket")
    server.start()
    yield
    server.stop()


@pytest.mark.slow
def test_checkpoints(cloud):
    """pip install gcsfs gcp-storage-emulator"""
    folder = os.path.join(WORKDIR, "checkpoints")
    state = {"kernel": jnp.arange(12.0).reshape(3, 4), "step": jnp.int32(0)}
    for first in (1, 3):
        store = Checkpoints(folder, keep_last=2, keep_best=1, best_metric="best")
        for step in (first, first + 1):
            assert store.save(step, jax.tree.map(lambda x, s=step: x + s, state), {"best": -step})
        store.close()
    store = Checkpoints(folder, keep_last=2)
    assert store.steps() == (1, 3, 4)
    assert read_score(epath.Path(folder), 4, "best").value == -4
    step, restored = store.restore(shapes_of(state))
    assert step == 4
    np.testing.assert_array_equal(restored["kernel"], state["kernel"] + 4)
    store.close()
