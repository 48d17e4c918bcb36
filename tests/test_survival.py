"""What a run survives: damage, kills at any moment, full disks, neighbours, closed terminals."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from diffusionrl_jax import main
from diffusionrl_jax.evaluation import evaluator
from diffusionrl_jax.runs import trained
from diffusionrl_jax.runs.checkpoints import Checkpoints
from tests.processes import (
    ROOT,
    TIMEOUT,
    assert_same_state,
    finish,
    launcher,
    steps_of,
    wait_for_step,
)


@pytest.mark.slow
def test_a_broken_checkpoint_is_passed_over(finished, make_config, tmp_path, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    for path in (workdir / "checkpoints" / "3").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    main.train(make_config(), str(workdir))
    assert "WARNING: checkpoint" in capfd.readouterr().err
    assert_same_state(workdir, finished, 3)
    assert steps_of(workdir) == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_signal_while_the_last_checkpoint_is_written(make_config, tmp_path, monkeypatch):
    """As the hosts of a slice are told to stop one after another."""
    wait, received = Checkpoints.wait, []

    def interrupted(checkpoints):
        signal.raise_signal(signal.SIGTERM)
        wait(checkpoints)
        received.append(checkpoints.steps()[-1])

    monkeypatch.setattr(Checkpoints, "wait", interrupted)
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("It would have been killed."))
    try:
        main.train(make_config(iterations=1), str(tmp_path))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [1]


@pytest.mark.slow
def test_an_evaluation_between_two_checkpoints_can_be_the_best(make_config, tmp_path, monkeypatch):
    """Its parameters are saved then and there, since later ones have other scores."""
    scores = iter([0.0, 0.9, 0.1, 0.2])
    logged = evaluator.Evaluator.logged
    monkeypatch.setattr(
        evaluator.Evaluator, "logged", lambda *args: (logged(*args)[0] | {"best": next(scores)}, {})
    )
    every = {"checkpoint.every": 100, "checkpoint.keep_last": 1, "evaluation.every": 1}
    main.train(make_config(**every), str(tmp_path))
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"), 1, 1, "best")
    assert checkpoints.steps() == (1, 3)
    assert checkpoints.best_step() == 1


@pytest.mark.slow
def test_any_name_of_a_workdir(finished, make_config, tmp_path):
    workdir = tmp_path / "a [1]*?~" / "run"
    main.train(make_config(iterations=1), str(workdir))
    main.train(make_config(), str(workdir))
    assert_same_state(workdir, finished, 3)
    assert steps_of(workdir) == [0, 1, 2, 3]


@pytest.mark.slow
def test_checkpoints_without_a_config_are_nobodys(finished, make_config, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(ValueError, match="has checkpoints, but no config.json"):
        main.train(make_config(), str(tmp_path / "run"))


@pytest.mark.slow
def test_parameters_that_are_not_finite_are_not_saved(make_config, tmp_path):
    """With a learning rate of NaN one iteration has finite gradients, and then nothing has."""
    main.train(make_config(iterations=1), str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    config["optimizer"]["learning_rate"] = math.nan  # As if a bug of the optimiser's came up.
    (tmp_path / "config.json").write_text(json.dumps(config))
    broken = make_config(**{"optimizer.learning_rate": math.nan, "evaluation.every": 9})
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(FloatingPointError, match="not finite after (iteration|step) 2") as caught,
    ):
        patch.setattr(trained, "check_same_experiment", lambda *_: None)
        main.train(broken, str(tmp_path))
    assert f"Checkpoint 1 in {tmp_path}/checkpoints is from before" in str(caught.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(start, config_file, make_config, tmp_path):
    config = config_file(make_config(iterations=1000, **{"checkpoint.every": 1000}))
    command = "main", f"--config={config}", f"--workdir={tmp_path}"
    process = start(*command)
    wait_for_step(process, tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    status, output = finish(process)
    assert status == 0, output
    assert "SIGTERM: saving and stopping" in output
    last = steps_of(tmp_path)[-1]
    assert (tmp_path / "checkpoints" / str(last)).is_dir()
    assert not (tmp_path / "before_after.png").exists()
    status, output = finish(start(*command, f"--config.iterations={last + 1}"))
    assert status == 0, output
    assert f"Resumed after iteration {last}." in output
    assert steps_of(tmp_path) == list(range(last + 2))
    assert (tmp_path / "before_after.png").exists()


@pytest.mark.slow
def test_two_programs_in_one_workdir(start, config_file, make_config, tmp_path):
    config = config_file(make_config(iterations=1000, **{"checkpoint.every": 1000}))
    command = "main", f"--config={config}", f"--workdir={tmp_path}"
    first = start(*command)
    wait_for_step(first, tmp_path, 0)
    status, output = finish(start(*command))
    assert status == 1
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert f"another program trains, process {first.pid} on" in line
    assert "Traceback" not in output
    assert first.poll() is None, "it is not disturbed"
    first.kill()  # It leaves no lock behind.
    status, output = finish(start(*command, "--config.iterations=1"))
    assert status == 0, output


# Interrupted twice as it begins to save.
INTERRUPTED = """
import signal
from diffusionrl_jax import main
from diffusionrl_jax.command_line import programs
from diffusionrl_jax.runs import checkpoints

save = checkpoints.Checkpoints.save

def save_and_interrupt(self, step, *arguments):
    if step == 2:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    return save(self, step, *arguments)

checkpoints.Checkpoints.save = save_and_interrupt
programs.run(main.main)
"""


@pytest.mark.slow
def test_two_interrupts_while_it_saves(compilation_cache, config_file, make_config, tmp_path):
    config = config_file(make_config(iterations=1000, **{"evaluation.every": 1000}))
    with launcher(compilation_cache, devices=2) as run:
        arguments = f"--config={config}", f"--workdir={tmp_path}"
        status, output = finish(run("-c", INTERRUPTED, *arguments))
    assert status == 128 + signal.SIGINT, output
    assert "Traceback" not in output
    assert output.splitlines()[-1] == "interrupted"
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]
    assert steps_of(tmp_path) == [0, 1, 2]


# From the second save on no file may grow: as on a disk that is full, or where a quota ends.
FULL_DISK = """
import resource, signal
from diffusionrl_jax import main
from diffusionrl_jax.command_line import programs
from diffusionrl_jax.runs import checkpoints

save = checkpoints.Checkpoints.save

def save_on_a_full_disk(self, step, *arguments):
    if step == 2:
        self.wait()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    return save(self, step, *arguments)

checkpoints.Checkpoints.save = save_on_a_full_disk
programs.run(main.main)
"""


@pytest.mark.slow
def test_a_disk_that_fills(compilation_cache, config_file, make_config, tmp_path):
    config = config_file(make_config(iterations=1000, **{"evaluation.every": 1000}))
    with launcher(compilation_cache, devices=2) as run:
        arguments = f"--config={config}", f"--workdir={tmp_path}"
        status, output = finish(run("-c", FULL_DISK, *arguments))
    assert status == 1
    assert "Traceback" not in output
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output
    assert f"Checkpoint 2 cannot be saved in {tmp_path}/checkpoints, where it needs" in errors[0]
    assert (
        "(File too large): mend that, and the same command goes on after iteration 1" in errors[0]
    )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert steps_of(tmp_path)[-1] < 10, "it computes no further"


@pytest.mark.slow
def test_a_closed_terminal_saves(compilation_cache, config_file, make_config, tmp_path):
    config = config_file(make_config(iterations=100_000, **{"checkpoint.every": 100_000}))
    ours, theirs = os.openpty()
    environment = os.environ | compilation_cache | {"JAX_PLATFORMS": "cpu"}
    command = ["setsid", "--ctty", "--wait", sys.executable, "-m", "diffusionrl_jax.main"]
    process = subprocess.Popen(
        [*command, f"--config={config}", f"--workdir={tmp_path}"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        cwd=ROOT,
    )
    os.close(theirs)
    threading.Thread(target=lambda: iter(lambda: os.read(ours, 1024), b""), daemon=True).start()
    wait_for_step(process, tmp_path, 2)
    os.close(ours)
    process.wait(TIMEOUT)
    last = steps_of(tmp_path)[-1]
    assert (tmp_path / "checkpoints" / str(last)).is_dir()


KILLED = {
    "lora": {"lora.rank": 2, "optimizer.learning_rate": 1e-2, "checkpoint.every": 2},
    "host reward, overlapped": {"tasks.small.scorer.reward": "host_reward"},
    "averages by prompt": {
        "tasks.small.normalisation": "prompt",
        "tasks.small.prompt_min_count": 1,
        "tasks.small.prompts": "emoji:portraits",
    },
    "pretraining": {"pretraining.weight": 1.0, "pretraining.pictures": "emoji"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLED)
def test_sigkill_at_any_moment_changes_nothing(kind, start, config_file, make_config, tmp_path):
    config = make_config(iterations=16, **KILLED[kind])
    if "host" in kind:
        config.tasks.small.scorer.path = "tests.scorers:brightness"
        config.tasks.small.scorer.options = {}
    command = "main", f"--config={config_file(config)}"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    status, output = finish(start(*command, f"--workdir={whole}"))
    assert status == 0, output
    moments, kills = random.Random(kind), 0
    while True:
        process = start(*command, f"--workdir={killed}")
        if kills < 5:
            if kills % 2:
                wait_for_step(process, killed, 3 * kills)
                time.sleep(0.5 * moments.random())
            else:  # At the start too, while models are loaded and what was saved is read.
                time.sleep(20 * moments.random())
            process.kill()
        if finish(process)[0] == 0:
            break
        kills += 1
    assert kills >= 3
    assert_same_state(killed, whole, 16)
    assert steps_of(killed) == list(range(17))
