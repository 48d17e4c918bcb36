"""What the pages name is there: fields and values, programs and flags, files, metrics."""

import pathlib
import re
import shlex

import pytest
import yaml

from diffusionrl_jax.algorithms import ALGORITHMS
from diffusionrl_jax.experiments.fields import ANY, FIELDS
from diffusionrl_jax.experiments.ranges import Several
from tests.algorithms import toy
from tests.processes import ROOT

PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"],
    key=lambda page: page.name,
)
# Names that are a field's, with a value behind =, or a group's: no sentence's end.
NAME = re.compile(r"(?<![\w/.])(?:--)?config((?:\.\w+)+)(?:=('[^']*'|\"[^\"]*\"|[^\s`|,;)]*))?")
FILES = ("config.json", "config.py")
COMMAND = re.compile(
    r"(?:-m )(diffusionrl_jax|benchmarks)\.([\w.]+)([^`|\n]*)|(benchmarks/\w+\.py)([^`|\n]*)"
)
FLAG = re.compile(r"(?<![\w-])--(?!config\b)(?:no)?([\w-]+)")
PLACEHOLDER = re.compile(r"[A-Z]{2,}|^[A-Z]$")
PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|sh|md|yaml|ipynb|json))[^`]*`")
PYTEST = re.compile(r"pytest ([^`]*)")
FOLDERS = (ROOT, ROOT / "diffusionrl_jax", ROOT / "docs")
# Of a model's folder, and of a run's.
WRITTEN = ("checkpoints/metrics.json",)
METRIC = re.compile(r"`((?:TASK|watch|ratio_check)/\w+|gradient_rms)[^`]*`")
TROUBLES = ("ratio_is_not_1.md", "reward_rises_pictures_worsen.md", "choosing.md")


def text(page):
    """A page as one would type it: commands that go on in the next line are one line."""
    return page.read_text(encoding="utf-8").replace("\\\n", " ")


def kind(name):
    """What a field may hold; a mapping of a group's fields; None if there is neither."""
    wanted, group = name.split("."), {}
    for field, found in FIELDS.items():
        parts = field.split(".")
        alike = [one in (other, ANY) for one, other in zip(parts, wanted, strict=False)]
        if len(wanted) <= len(parts) and all(alike):
            if len(parts) == len(wanted):
                return found
            group[field] = found
    return group or None


def named_fields(page):
    """The fields that a page names, and the values that it gives them."""
    for name, value in NAME.findall(text(page)):
        name = name[1:]
        if f"config.{name}" not in FILES and ".options." not in name:
            yield name, value.strip("'\"")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fields_are_there_and_may_hold_what_is_said(page):
    wrong = []
    for name, value in named_fields(page):
        found = kind(name)
        if found is None:
            wrong.append(f"{name} is no field")
        elif value and not isinstance(found, dict | Several) and not PLACEHOLDER.search(value):
            typed = yaml.safe_load(value.rstrip(".:"))
            of_text = found.takes(value) or found.takes(value.rstrip(".:"))
            if not (of_text or found.takes(typed) or found.takes(_number(value))):
                wrong.append(f"{name}={value}: {found}")
    assert not wrong


def _number(value):
    """What YAML takes for a text: 1e-4."""
    try:
        return float(value.rstrip(".:"))
    except ValueError:
        return None


def sources(package, module):
    """The files that define what a program takes, or None if there is no such program."""
    folder = ROOT / package / pathlib.Path(*module.split("."))
    own = folder.with_suffix(".py")
    if not (own.exists() or (folder / "__main__.py").exists()):
        return None
    found = [own] if own.exists() else []
    commands = {"benchmark": "costs", "study": "reporting/study"}.get(module)
    found += (ROOT / package / commands / "commands").glob("*.py") if commands else []
    return [*found, ROOT / "diffusionrl_jax" / "command_line" / "start.py"]


def takes(files, flag):
    return any(
        re.search(rf"""["'](?:--)?{re.sub("[_-]", "[_-]", flag)}["']""", f.read_text())
        for f in files
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_take_the_flags_that_are_said(page):
    wrong = []
    for package, module, flags, script, of_script in COMMAND.findall(text(page)):
        if script:
            package, module, flags = "benchmarks", pathlib.Path(script).stem, of_script
        files = sources(package, module)
        if files is None:
            wrong.append(f"there is no program {package}.{module}")
            continue
        wrong += [f"{module} --{flag}" for flag in FLAG.findall(flags) if not takes(files, flag)]
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_are_there(page):
    paths = set(PATH.findall(text(page))) - {*WRITTEN}
    for line in PYTEST.findall(text(page)):
        paths |= {word for word in shlex.split(line, comments=True) if word.startswith("tests/")}
    there = lambda path: any((folder / path).exists() for folder in FOLDERS)
    assert [path for path in sorted(paths) if not there(path.partition("::")[0])] == []


@pytest.fixture(scope="module")
def logged():
    """The names of what is logged of an iteration and of an evaluation."""
    own = {"kl_weight": 1.0, "remove_ratio_bias": True}
    own = {f"algorithm.policy_gradient.{name}": value for name, value in own.items()}
    of_updates = {"loss", "gradient_norm", "reward_mean", "reward_std", "invalid_rewards"}
    for name in ALGORITHMS:
        of_updates |= toy.make(name, **own).algorithm.reductions.keys()
    found = {f"TASK/{name}" for name in of_updates - {"ratio_error", "largest_ratio_error"}}
    found |= {"ratio_check/mean", "ratio_check/max", "gradient_rms"}
    signals = ("kl_to_base", "noise_length", "diversity", "gain_entropy", "falls")
    return found | {f"watch/{name}" for name in signals}


@pytest.mark.parametrize("page", TROUBLES)
def test_metrics_are_logged(page, logged):
    named = {*METRIC.findall((ROOT / "docs" / page).read_text())}
    assert named and named <= logged
