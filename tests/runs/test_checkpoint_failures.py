"""Why a save failed, as the operating system and TensorStore say it."""

import errno
import os
import re
import threading
import time

import pytest
import tensorstore
from etils import epath

from diffusionrl_jax.runs import checkpoint_failures


def raised(function):
    with pytest.raises(Exception) as caught:  # noqa: B017
        function()
    return caught.value


def open_array(path):
    """TensorStore fails where a folder is to be and a file is."""
    path.write_text("no folder")
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{path}/array/"}}
    tensorstore.open(spec, create=True, dtype="int8", shape=[1]).result()


def test_errors_of_the_file_system_come_through_any_library(tmp_path):
    of_system = raised(lambda: os.listdir(tmp_path / "none"))
    assert checkpoint_failures.is_of_the_file_system(of_system)
    assert checkpoint_failures.reason(of_system) == os.strerror(errno.ENOENT)
    of_tensorstore = raised(lambda: open_array(tmp_path / "file"))
    assert checkpoint_failures.is_of_the_file_system(of_tensorstore)
    text = str(of_tensorstore)
    # What it adds comes in either order.
    message, *added = re.split(r" (?=\[\w+='.*?'\])", text)
    assert "[os_error_code=" in text and len(added) > 1
    for order in (added, added[::-1]):
        error = ValueError(" ".join([message, *order]))
        assert checkpoint_failures.reason(error) == os.strerror(errno.ENOTDIR)


def test_other_errors_are_not_the_file_systems():
    for error in (ValueError("Some: thing"), KeyError("NOT_FOUND: x"), RuntimeError("x")):
        assert not checkpoint_failures.is_of_the_file_system(error)
    long = ValueError(f"{'x' * 300}\nmore")
    assert checkpoint_failures.reason(long) == f"ValueError: {'x' * 200}"
    assert checkpoint_failures.first_line(ValueError()) == "ValueError: "


NAMES = ("12.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-17", "12", "x.orbax-checkpoint-tmp")


def test_what_no_save_has_completed_is_removed(tmp_path):
    for name in NAMES:
        (tmp_path / name / "state").mkdir(parents=True)
    assert checkpoint_failures.remove_unfinished(epath.Path(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(NAMES[2:])
    assert not checkpoint_failures.remove_unfinished(epath.Path(tmp_path))


def test_what_a_thread_still_writes_is_removed_too(tmp_path):
    def write():
        for number in range(3):
            (tmp_path / NAMES[0] / str(number)).mkdir(parents=True, exist_ok=True)
            time.sleep(0.1)

    thread = threading.Thread(target=write)
    thread.start()
    checkpoint_failures.remove_what_is_still_written(epath.Path(tmp_path))
    thread.join()
    assert os.listdir(tmp_path) == []
