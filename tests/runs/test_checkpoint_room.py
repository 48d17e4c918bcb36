"""What is said of disks, whose free bytes the system tells, or a fake of it."""

import shutil
from collections import namedtuple

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from diffusionrl_jax.runs import checkpoint_room, checkpoints

MB = 10**6
STATE = {"x": jax.ShapeDtypeStruct((MB // 4,), jnp.float32)}


@pytest.fixture
def free(monkeypatch):
    """Sets the free bytes of all disks."""
    usage = namedtuple("usage", "free")
    return lambda size: monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(size))


def test_a_disk_without_room_is_refused_before_compute(tmp_path):
    store = checkpoints.Checkpoints(str(tmp_path / "new" / "checkpoints"))
    store.check_room({"x": jax.ShapeDtypeStruct((1000,), jnp.float32)})
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(checkpoints.SaveError, match="one needs .* GB, and .* are free"):
        store.check_room({"x": jax.ShapeDtypeStruct((free, 2), jnp.float32)})


def test_a_disk_without_room_for_all_that_a_run_keeps_is_warned_of(tmp_path, caplog, free):
    """Two newest, three best, and the one that is being written."""
    store = checkpoints.Checkpoints(str(tmp_path), 2, 3, "best")
    free(6 * MB)
    store.check_room(STATE)
    assert not caplog.text
    free(6 * MB - 1)
    store.check_room(STATE)
    (warning,) = caplog.messages
    assert "up to 6 more need 6.0 MB, and 6.0 MB are free" in warning
    for step in (1, 2):  # They are on the disk already.
        store.save(step, {"x": jnp.ones(3)}, {"best": 0.0})
    store.close()
    caplog.clear()
    free(4 * MB)
    store.check_room(STATE)
    assert not caplog.text
    free(4 * MB - 1)
    store.check_room(STATE)
    assert "up to 4 more need 4.0 MB" in caplog.text
    free(MB - 1)
    with pytest.raises(checkpoints.SaveError, match="one needs 1.0 MB"):
        store.check_room(STATE)


def test_a_bucket_has_room(free):
    free(0)
    checkpoint_room.check_room(epath.Path("gs://bucket/run"), MB, 6)
