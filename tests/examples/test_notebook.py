"""The notebook for TPUs, whose cells are run here as Jupyter runs them, on the CPU.

Those that install, and those that train Stable Diffusion, are not: they carry the tag by which
nbclient, too, passes over a cell. Of these it is looked at whether what they name is there.
"""

import ast
import importlib
import json
import shlex
import subprocess
import sys

import pytest
from PIL import Image

from tests.processes import ROOT, steps_of

NOTEBOOK = ROOT / "examples" / "tpu.ipynb"
START = ROOT / "diffusionrl_jax" / "command_line" / "start.py"
SKIPPED = "skip-execution"
ITERATIONS = "ITERATIONS = 24\n"


@pytest.fixture(scope="module")
def cells():
    """Source and tags of each cell of code."""
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in code)
    return [(whole_lines(cell["source"]), cell["metadata"].get("tags", [])) for cell in code]


def whole_lines(source):
    return "".join(source).replace("\\\n", " ")


def run_cell(source, namespace):
    """What the cell's last line is worth; after "!" stands a command, {name} in it a variable."""
    translated = [
        f"shell(f{line[1:]!r})" if line.startswith("!") else line for line in source.splitlines()
    ]
    *before, last = ast.parse("\n".join(translated)).body
    exec(compile(ast.Module(before, []), str(NOTEBOOK), "exec"), namespace)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), namespace)


@pytest.mark.slow
def test_the_emoji_world_is_trained_and_shown(cells, compilation_cache, tmp_path, monkeypatch):
    for folder in ("configs", "diffusionrl_jax"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    for name, value in compilation_cache.items():
        monkeypatch.setenv(name, value)

    def shell(command):
        program = command.replace("python", shlex.quote(sys.executable), 1)
        subprocess.run(program, shell=True, check=True)

    namespace, shown = {"shell": shell}, []
    for source, tags in cells:
        if SKIPPED not in tags:
            shown.append(run_cell(source.replace(ITERATIONS, "ITERATIONS = 1\n"), namespace))
    assert steps_of(tmp_path / "runs" / "emoji") == [0, 1]
    assert isinstance(shown[-1], Image.Image)
    assert min(shown[-1].size) > 96  # A picture of it at least.


def test_every_field_and_flag_is_there(cells):
    assert sum(ITERATIONS in source for source, _ in cells) == 1
    programs = []
    for line in "\n".join(source for source, _ in cells).splitlines():
        if not line.startswith("!python -m diffusionrl_jax."):
            continue
        module, *arguments = shlex.split(line)[2:]
        programs.append(module.rpartition(".")[2])
        flags = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
        path = ROOT / f"{module.replace('.', '/')}.py"
        known = path.read_text() + START.read_text()
        if "config" in flags:
            name = flags["config"].removesuffix(".py").replace("/", ".")
            fields = importlib.import_module(name).get_config()
        for flag in flags:
            if flag.startswith("config."):
                value = fields
                for part in flag.split(".")[1:]:
                    value = value[part]
            else:
                assert f'"{flag}"' in known
        assert flags["process_count"] == "1"
    assert programs == ["main", "main", "sample"]
