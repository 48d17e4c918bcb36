"""The tables of docs/compatibility.md against the code."""

import json
import pathlib
import re

import pytest

from diffusionrl_jax.models import schedulers
from diffusionrl_jax.models.families import FAMILIES
from diffusionrl_jax.models.folders.networks import CLASSES, NETWORKS, NETWORKS_XL, STEMS
from diffusionrl_jax.models.folders.tensor_files import candidates
from diffusionrl_jax.models.mmdit.pipelines import PIPELINES
from diffusionrl_jax.models.stable_diffusion import amendments

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()


def table(*header):
    """The rows of the table with this header: lists of cells."""
    lines = PAGE.split("\n")
    start = lines.index(f"| {' | '.join(header)} |") + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    raise AssertionError("The table has no end.")


def names(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_pipelines():
    rows = {names(pipeline)[0]: names(parts) for pipeline, parts in table("pipeline", "parts")}
    expected = {amendments.PIPELINE: [*NETWORKS], amendments.PIPELINE_XL: [*NETWORKS_XL]}
    expected |= {name: [*pipeline.kinds] for name, pipeline in PIPELINES.items()}
    assert rows == expected and rows.keys() == FAMILIES.keys()


def test_classes_and_files():
    rows = table("part", "class", "files, the first that is there")
    expected = [[[part], [CLASSES[part][1]], candidates(STEMS[part])] for part in CLASSES]
    assert [[names(cell) for cell in row] for row in rows] == expected


def test_parts_of_transformers():
    rows = [[names(cell)[0] for cell in row] for row in table("pipeline", "part", "class")]
    assert rows == [
        [name, part, kind.name]
        for name, pipeline in PIPELINES.items()
        for part, kind in pipeline.kinds.items()
    ]


def test_schedulers():
    fields = ("beta_start", "beta_end", "clip_sample")
    rows = table("class", *(f"`{field}`" for field in fields))
    actual = {names(name)[0]: [json.loads(cell) for cell in cells] for name, *cells in rows}
    defaults = {name: schedulers.with_defaults({}, name) for name in schedulers.SCHEDULERS}
    assert actual == {name: [of[field] for field in fields] for name, of in defaults.items()}


def test_fields_of_schedulers():
    rows = {names(field)[0]: cells for field, *cells in table("field", "left out", "may be")}
    by_class = ("beta_start", "beta_end", "clip_sample")
    assert rows.keys() == schedulers.DEFAULTS.keys() - set(by_class)
    for field, (default, allowed) in rows.items():
        assert json.loads(default) == schedulers.DEFAULTS[field]
        if field in schedulers.CHOICES:
            assert re.findall(r'"(\w+)"', allowed) == [*schedulers.CHOICES[field]]
        else:
            assert allowed.startswith(schedulers.KINDS[field].text)


@pytest.mark.parametrize("field", [*schedulers.REFUSED])
def test_refused_fields_of_schedulers(field):
    refused = re.search(r"Refused are (.*?)\n\n", PAGE, re.DOTALL)[1]
    assert field in names(refused)


def test_amendments():
    rows = table("pipeline", "part", "field", "becomes")
    actual = [
        (*names(pipeline), *names(part), names(field)[0], json.loads(value))
        for pipeline, part, field, value in rows
    ]
    expected = [
        (pipeline, "scheduler", field, value)
        for pipeline, fields in amendments.AMENDED_SCHEDULER.items()
        for field, value in fields.items()
    ]
    size = (amendments.PIPELINE, "unet", "sample_size", amendments.SAMPLE_SIZE)
    assert actual == [*expected, size]
    before = ".".join(map(str, amendments.SAMPLE_SIZE_SINCE))
    assert f"below {amendments.SAMPLE_SIZE}, saved before diffusers {before} " in PAGE
