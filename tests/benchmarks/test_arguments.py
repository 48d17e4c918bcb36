"""Benchmarks find `configs` from a fresh checkout, as they are documented to be run."""

import os
import re
import subprocess
import sys

import pytest

from tests.processes import ROOT

BENCHMARKS = ROOT / "benchmarks"
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *BENCHMARKS.glob("*.py")]
SCRIPTS = sorted(
    {
        name
        for page in PAGES
        for name in re.findall(r"python\s+benchmarks/(\w+)\.py", page.read_text(encoding="utf-8"))
    }
)
MODULES = re.compile(r"^(?:from|import) (\w+)", re.MULTILINE)


def test_the_root_is_found_from_anywhere(tmp_path):
    program = f"import sys; sys.path[0] = {str(BENCHMARKS)!r}; import arguments, configs"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", f"{program}; print(configs.__path__)"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and str(ROOT / "configs") in done.stdout, done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_imports_configs_looks_in_the_root_first(name):
    modules = MODULES.findall((BENCHMARKS / f"{name}.py").read_text())
    assert "configs" not in modules or "arguments" in modules[: modules.index("configs")]
