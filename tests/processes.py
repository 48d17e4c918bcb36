"""Starts the programs as a user does, and looks at what they leave behind."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from diffusionrl_jax.monitoring.metrics import read_rows

ROOT = pathlib.Path(__file__).parent.parent
TIMEOUT = 600  # seconds; on an idle machine a program takes 20 to 30


@contextlib.contextmanager
def launcher(environment, devices, folder=ROOT):
    """A function that starts Python with arguments; whatever still runs at the end is killed.

    Args:
      environment: variables to add to this process's.
      devices: how many of the CPU each process has.
      folder: where it is started.
    """
    flags = {
        "JAX_PLATFORMS": "cpu",
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    started = []

    def run(*arguments):
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **flags, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def finish(process, timeout=TIMEOUT):
    """Exit status and output."""
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def free_address():
    """HOST:PORT that nobody listens to."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def saved_state(workdir, step):
    """The arrays of a checkpoint, by Orbax alone, whatever devices they were saved from."""
    path = workdir / "checkpoints" / str(step) / "state"
    checkpointer = ocp.PyTreeCheckpointer()
    leaves = checkpointer.metadata(path).item_metadata.tree
    whole = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), leaves)
    return checkpointer.restore(path, restore_args=whole)


def steps_of(workdir):
    return [row["step"] for row in read_rows(str(workdir))]


def wait_for_step(process, workdir, step):
    """Returns when the metrics of a step are there, or the program has ended."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        if (workdir / "metrics.jsonl").exists() and steps_of(workdir)[-1:] >= [step]:
            return
        time.sleep(0.05)
    if process.poll() is None:
        pytest.fail("the program takes too long")
    status, output = finish(process)
    assert status == 0, output


def shapes_of(state):
    """Its shapes, dtypes and shardings, for `Checkpoints.restore`."""
    shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return jax.tree.map(shape, state)


def assert_same_state(workdir, other, step):
    """Two runs have the same checkpoint, to the bit."""
    state, expected = saved_state(workdir, step), saved_state(other, step)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for leaf, expected_leaf in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert np.asarray(leaf).tobytes() == np.asarray(expected_leaf).tobytes()
