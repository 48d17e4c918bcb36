"""What can be said of launch/ without running it."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
STOPPABLE = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit({status}))
print("ready", flush=True)
signal.pause()
"""


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda script: script.name)
def test_shellcheck(script):
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    process = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout
    assert os.access(script, os.X_OK)


def test_dockerfile_copies_what_exists_and_what_the_program_needs():
    dockerfile = (LAUNCH / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.*)", dockerfile, re.M) for word in line.split()]
    assert all((ROOT / path).exists() for path in copied if path != "./")
    assert {"diffusionrl_jax", "configs", "launch/until_complete.sh", "setup.cfg"} <= set(copied)
    entry = re.search(r"^ENTRYPOINT (.*)", dockerfile, re.M).group(1)
    assert entry.startswith('["launch/until_complete.sh", "python"')


@pytest.mark.parametrize(
    "file, extras",
    [
        ("launch/tpu_vm.sh", "tpu,gcs,torch"),
        ("launch/Dockerfile", "tpu,gcs,torch"),
        ("docs/launch.md", "cuda,torch"),
        ("examples/tpu.ipynb", "tpu,torch"),
    ],
)
def test_pickles_can_be_read_where_it_is_installed(file, extras):
    """Some of the published rewards are pickles, which PyTorch converts."""
    assert re.findall(r"\.\[([\w,]+)\]", (ROOT / file).read_text()) == [extras]


@pytest.mark.parametrize("status, seen", [(0, 143), (3, 3)])
def test_a_stopped_run_is_not_taken_for_a_complete_one(status, seen):
    command = [LAUNCH / "until_complete.sh", sys.executable, "-c", STOPPABLE.format(status=status)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == seen


@pytest.mark.parametrize("status", [0, 5])
def test_a_run_that_ends_by_itself_keeps_its_status(status):
    command = [LAUNCH / "until_complete.sh", sys.executable, "-c", f"raise SystemExit({status})"]
    assert subprocess.run(command).returncode == status
