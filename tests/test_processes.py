"""Two processes on one machine train as one does, and none is left hanging when one is lost."""

import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import common
from diffusionrl_jax.data.prompt_sources import make_prompts
from diffusionrl_jax.data.prompts import prompt_batch
from diffusionrl_jax.experiments.loading import load_policy
from diffusionrl_jax.experiments.pretraining import LATENTS, encode_pictures, model_fingerprint
from diffusionrl_jax.monitoring.metrics import read_rows
from diffusionrl_jax.runs.trained import read_config
from tests.processes import finish, free_address, launcher, saved_state, steps_of, wait_for_step

pytestmark = pytest.mark.multiprocess

# So that the tiny UNet is split over "fsdp", too.
PROGRAM = """
from diffusionrl_jax import main
from diffusionrl_jax.command_line import programs
from diffusionrl_jax.distributed import mesh

mesh.REPLICATED_BYTES = 1024
programs.run(main.main)
"""
ITERATIONS = 6
# Adam's large epsilon keeps the rounding of sums in another order from growing; what is left is
# below a hundredth of what the parameters move by.
TOLERANCE = 1e-5
# Of the heartbeats, half a minute, and as much for what waits for them.
LONGEST_EXIT = 60


# Process 1 ends while process 0 waits for it, where JAX raises a ValueError.
WAITING = """
import os, sys, jax
from diffusionrl_jax.command_line import programs
from diffusionrl_jax.distributed import processes

address, index = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, 2, index)
with programs.clear_errors():
    processes.true_everywhere(True)
    if index == 1:
        os._exit(9)
    while True:
        processes.true_everywhere(True)
"""
FAILING = "DIFFUSIONRL_JAX_TEST_FAILING"  # Names a file; while it is there, the scorer can fail.


def count_red(images, prompts, metadata):
    """A scorer on the host; in the second process' third iteration it may fail."""
    failing = os.environ.get(FAILING)
    if failing and Path(failing).exists() and jax.process_index() == 1:
        assert metadata[0]["iteration"] < 2, "no red today"
    return images[..., 0].sum((1, 2), dtype=np.int64) + list(map(len, prompts))


class Pictures(list):
    fingerprint = "noise"


@pytest.fixture(scope="module")
def settings(make_config, tmp_path_factory):
    """A config with pretraining, of which each process reads its own pictures, and no pictures.

    Of its two tasks one is scored in the graph, the other by each process on its host.
    """
    config = make_config(
        **{
            "iterations": ITERATIONS,
            "mesh.fsdp": 2,
            "optimizer.epsilon": 1e-3,
            "pretraining.weight": 0.5,
        }
    )
    config.evaluation.every = ITERATIONS // 2
    del config.evaluation.sets.people
    scorer = common.make_scorer("host_reward", f"{__name__}:count_red")
    config.tasks.host = common.make_task(scorer, "emoji:pairs")
    policy = load_policy(config)
    rng = np.random.default_rng(0)
    texts = prompt_batch(make_prompts("emoji:pairs", 0), 0, 16, 1)
    source = Pictures((rng.integers(0, 256, (32, 32, 3), np.uint8), text) for text in texts)
    folder = tmp_path_factory.mktemp("latents")
    vae = policy.params["vae"]
    encoder = model_fingerprint(policy.model, vae, policy.mesh)
    encode_pictures(source, policy.model, vae, policy.mesh, folder, encoder)
    config.pretraining.pictures = f"{LATENTS}{folder}"
    return config


@pytest.fixture(scope="module")
def command(config_file, settings):
    return lambda workdir: (
        "-c",
        PROGRAM,
        f"--config={config_file(settings)}",
        f"--workdir={workdir}",
    )


@pytest.fixture(scope="module")
def start():
    """Without the cache of compiled programs, which the first process alone writes: gloo waits for
    half a minute, and one that compiles is further behind one that does not.
    """
    with launcher({"JAX_ENABLE_COMPILATION_CACHE": "false"}, devices=1) as run:
        yield run


@pytest.fixture(scope="module")
def alone(compilation_cache, command, tmp_path_factory):
    """The workdir of a run of one process with two devices."""
    workdir = tmp_path_factory.mktemp("alone")
    with launcher(compilation_cache, devices=2) as run:
        status, output = finish(run(*command(workdir)))
    assert status == 0, output
    return workdir


@pytest.fixture
def start_two(start, command):
    """A function that starts two processes with one device each on a workdir."""

    def run(workdir, *arguments):
        address = free_address()
        joined = f"--coordinator_address={address}", "--process_count=2"
        return [
            start(*command(workdir), *joined, f"--process_index={index}", *arguments)
            for index in range(2)
        ]

    return run


def assert_same_end(workdir, alone):
    before = saved_state(alone, ITERATIONS - 1)
    ours, theirs = (saved_state(folder, ITERATIONS) for folder in (workdir, alone))
    largest = lambda a, b: max(
        jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(np.subtract(x, y)).max(), a, b))
    )
    assert largest(before["params"], theirs["params"]) > 10 * TOLERANCE
    for name in ("params", "ema_params"):
        assert largest(ours[name], theirs[name]) <= TOLERANCE
    assert steps_of(workdir) == list(range(ITERATIONS + 1))
    ours, theirs = map(evaluated, (workdir, alone))
    assert list(ours) == [0, ITERATIONS // 2, ITERATIONS]
    # Sizes in kilobytes: pictures that differ by rounding differ in a few bytes, if at all.
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-2)


def evaluated(workdir):
    """What the evaluations found, by the iteration."""
    rows = read_rows(str(workdir))
    return {row["step"]: row["pairs/size"] for row in rows if "pairs/size" in row}


@pytest.mark.slow
def test_two_processes_end_like_one(start_two, alone, tmp_path):
    outputs = [finish(process) for process in start_two(tmp_path)]
    assert [status for status, _ in outputs] == [0, 0], outputs
    assert_same_end(tmp_path, alone)
    # Both have written their halves of the parameters, and only the first the metrics.
    parts = {path.name for path in (tmp_path / "checkpoints" / str(ITERATIONS)).rglob("*process_*")}
    assert {"ocdbt.process_0", "ocdbt.process_1"} <= parts
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert read_config(str(tmp_path)).mesh.fsdp == 2


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_lost_process_ends_the_other_and_the_pair_resumes(
    start_two, alone, tmp_path, lost, number
):
    pair = start_two(tmp_path)
    wait_for_step(pair[0], tmp_path, 1)
    pair[lost].send_signal(number)
    began = time.monotonic()
    status, output = finish(pair[1 - lost])
    assert time.monotonic() - began < LONGEST_EXIT
    assert status != 0, output
    # The second is JAX's own, of a thread that ends the process.
    assert "lost another process" in output or "another task died" in output, output
    pair[lost].kill()
    outputs = [finish(process) for process in start_two(tmp_path)]
    assert [status for status, _ in outputs] == [0, 0], outputs
    assert_same_end(tmp_path, alone)


def test_waiting_for_a_lost_process_ends_in_one_line(start):
    address = free_address()
    first, _ = [start("-c", WAITING, address, str(index)) for index in range(2)]
    status, output = finish(first)
    assert status == 1
    assert output.splitlines()[-1].startswith("error: this process cannot go on")


@pytest.mark.slow
def test_sigterm_on_one_host_saves_on_all(start_two, alone, tmp_path):
    pair = start_two(tmp_path)
    wait_for_step(pair[0], tmp_path, 1)
    pair[1].send_signal(signal.SIGTERM)
    outputs = [finish(process) for process in pair]
    assert [status for status, _ in outputs] == [0, 0], outputs
    last = steps_of(tmp_path)[-1]
    assert (tmp_path / "checkpoints" / str(last)).is_dir()
    assert last < ITERATIONS, "the machine is too fast for this test: raise ITERATIONS"
    outputs = [finish(process) for process in start_two(tmp_path)]
    assert all(f"Resumed after iteration {last}." in output for _, output in outputs)
    assert_same_end(tmp_path, alone)


@pytest.mark.slow
def test_an_error_in_one_process_ends_both(start, command, tmp_path):
    joined = f"--coordinator_address={free_address()}", "--process_count=2"
    good = start(*command(tmp_path), *joined, "--process_index=0")
    bad = start(*command(tmp_path), *joined, "--process_index=1", "--config.model=/no/model")
    status, output = finish(bad)
    assert status == 1
    assert "error: " in output.splitlines()[-1]
    assert "/no/model" in output.splitlines()[-1]
    began = time.monotonic()
    assert finish(good)[0] != 0
    assert time.monotonic() - began < LONGEST_EXIT


@pytest.mark.slow
def test_hosts_that_do_not_share_the_workdir(start, command, tmp_path):
    joined = f"--coordinator_address={free_address()}", "--process_count=2"
    pair = [
        start(*command(tmp_path / str(index)), *joined, f"--process_index={index}")
        for index in range(2)
    ]
    outputs = [finish(process) for process in pair]
    assert [status for status, _ in outputs] == [1, 1], outputs
    # One may notice that the other has ended before it is told.
    lines = [line for _, output in outputs for line in output.splitlines()]
    assert any(
        line.startswith("error: ") and "is not one folder for all 2 processes" in line
        for line in lines
    )
    assert not (tmp_path / "0" / "running.json").exists()


@pytest.mark.slow
def test_a_scorer_that_fails_in_one_process_stops_both(start_two, alone, tmp_path, monkeypatch):
    failing, workdir = tmp_path / "failing", tmp_path / "run"
    failing.touch()
    monkeypatch.setenv(FAILING, str(failing))
    outputs = [finish(process) for process in start_two(workdir)]
    assert [status for status, _ in outputs] == [1, 1], outputs
    first, second = (output.splitlines()[-1] for _, output in outputs)
    assert first.startswith("error: A scorer has failed in another process, whose log names it.")
    assert f"The scorer {__name__}:count_red raised AssertionError: no red today" in second
    assert all("Iteration 2 is saved: mend the scorer" in line for line in (first, second))
    failing.unlink()
    outputs = [finish(process) for process in start_two(workdir)]
    assert all("Resumed after iteration 2." in output for _, output in outputs)
    assert_same_end(workdir, alone)
