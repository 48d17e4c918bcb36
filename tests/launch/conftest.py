"""What the scripts of launch/ call, played: no cloud is needed, and none is reached."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FAKES = pathlib.Path(__file__).parent / "fakes.py"


@pytest.fixture
def play(tmp_path):
    """A function that runs a script of launch/ where other commands are played by fakes.py.

    Args:
      script: its name and arguments.
      names: the commands that are played.
      world: what the fakes go by, as JSON.

    Returns:
      The finished process, with `calls`, the fakes' arguments in order, `home`, and `world` as
      the fakes have left it.
    """

    def run(script, names, world=None, cwd=ROOT, **environment):
        commands, home = tmp_path / "bin", tmp_path / "home"
        for folder in (commands, home):
            folder.mkdir(exist_ok=True)
        for name in names:
            fake = commands / name
            fake.write_text(f"#!{sys.executable} -IS\n{FAKES.read_text()}")
            fake.chmod(0o755)
        world_file, calls = tmp_path / "world.json", tmp_path / "calls.jsonl"
        world_file.write_text(json.dumps(world or {}))
        calls.write_text("")
        environment |= {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "HOME": str(home),
            "TMPDIR": str(tmp_path),
            "FAKE_WORLD": str(world_file),
            "FAKE_CALLS": str(calls),
        }
        process = subprocess.run(
            [str(ROOT / "launch" / script[0]), *script[1:]],
            cwd=cwd,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        process.calls = [json.loads(line) for line in calls.read_text().splitlines()]
        process.home, process.world = home, json.loads(world_file.read_text())
        return process

    return run
