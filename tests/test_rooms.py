"""Each file imports from the rooms before its own, no two each other, and each has its tests."""

import ast
import graphlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "diffusionrl_jax"


def name_of(file):
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imports(name):
    """The modules of this package that a module names in imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports by dots"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in FILES else node.module)
    return {module for module in found if module in FILES} - {PACKAGE.name}


def room(module):
    """A program has none."""
    parts = module.split(".")
    return parts[1] if (PACKAGE / parts[1]).is_dir() else None


def stated_order():
    """As CONTRIBUTING.md states it, one row a room."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)


def test_the_order_names_each_room():
    assert sorted(stated_order()) == sorted({room(name) for name in FILES if "." in name} - {None})


@pytest.mark.parametrize("name", [name for name in FILES if "." in name])
def test_no_import_runs_upward(name):
    order = stated_order()
    for module in imports(name):
        assert room(module), f"{name} imports the program {module}"
        if room(name):
            assert order.index(room(module)) <= order.index(room(name)), f"{name} imports {module}"


def test_no_circle():
    tuple(graphlib.TopologicalSorter({name: imports(name) for name in FILES}).static_order())


def test_every_module_has_a_test_file_of_its_own_path_and_name():
    modules = [file.relative_to(PACKAGE) for file in FILES.values() if file.name != "__init__.py"]
    tested = lambda module: (ROOT / "tests" / module.with_name(f"test_{module.name}")).is_file()
    assert [str(module) for module in modules if not tested(module)] == []
