"""The pages are built, tell of every method of the protocols, and their examples run."""

import importlib
import inspect
import re
import subprocess
import sys
import types

import pytest

from diffusionrl_jax.diffusion import process
from diffusionrl_jax.models import families
from tests.processes import ROOT

PROTOCOLS = {
    "text_to_image": "diffusionrl_jax.models.text_to_image.TextToImage",
    "process": "diffusionrl_jax.diffusion.process.Process",
    "objective": "diffusionrl_jax.learning.objectives.Objective",
    "algorithm": "diffusionrl_jax.learning.algorithm.Algorithm",
    "reward": "diffusionrl_jax.rewards.Reward",
}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.py)\n")


def blocks(page):
    return BLOCK.findall((ROOT / "docs" / "interface" / f"{page}.md").read_text())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The modules that the pages show, where they can be imported; none is there afterwards."""
    for page in PROTOCOLS:
        for block in blocks(page):
            if name := FILE.match(block):
                (tmp_path / name[1]).write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    monkeypatch.setattr(process, "PROCESSES", dict(process.PROCESSES))
    yield tmp_path
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.mark.parametrize("page", PROTOCOLS)
def test_a_page_tells_of_the_whole_protocol(site, page):
    name = PROTOCOLS[page]
    module, _, kind = name.rpartition(".")
    protocol = getattr(importlib.import_module(module), kind)
    html = (site / "interface" / f"{page}.html").read_text()
    # Not those that `typing` gives every protocol.
    methods = [
        method
        for method, value in vars(protocol).items()
        if isinstance(value, types.FunctionType | classmethod) and value.__module__ == module
    ]
    assert methods
    for method in methods:
        assert f'id="{name}.{method}"' in html
    for attribute in inspect.get_annotations(protocol):
        assert f"<code>{attribute}</code>" in html


def test_no_docstring_is_left_unread(site):
    """Sections whose names stand in the text were not recognised as such."""
    for page in PROTOCOLS:
        html = (site / "interface" / f"{page}.html").read_text()
        assert not re.search(r"<p>(Args|Returns|Raises|Attributes):", html), page


@pytest.mark.parametrize("page", PROTOCOLS)
def test_examples_run(files, page):
    code = "\n".join(block for block in blocks(page) if not FILE.match(block))
    exec(compile(code, f"{page}.md", "exec"), {"__name__": page})


def test_tables_break_their_lines(site):
    """The theme has a cell in one line: the style that mends it is there, and is asked for last."""
    styles = re.findall(r'<link[^>]* ?href="([^"]+\.css)"', (site / "choosing.html").read_text())
    assert "white-space: normal" in (site / styles[-1]).read_text()


def test_the_objective_is_short():
    (code,) = (block for block in blocks("objective") if block.startswith("# reinforce.py"))
    assert len(code.splitlines()) <= 40
