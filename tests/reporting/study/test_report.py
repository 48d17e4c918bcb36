"""The report of a study holds its findings."""

import csv
import math

import pytest

from diffusionrl_jax.reporting.study import findings, report
from diffusionrl_jax.reporting.study.findings import (
    ALPHA,
)
from tests.reporting.study.conftest import raters_of


def test_the_page_and_the_table_hold_every_number(folder, study, inattentive, tmp_path):
    attention = findings.attend(raters_of(inattentive), inattentive, 0.7)
    found = report.write_report(tmp_path, folder, study, inattentive, attention)
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found) > 20
    for row, expected in zip(rows, found, strict=True):
        number = float(row["value"]) if row["value"] else math.nan
        assert number == pytest.approx(expected.value, nan_ok=True)
        assert (row["group"], row["category"]) == (expected.group, expected.category)
    page = (tmp_path / "report.html").read_text()
    for row in found:
        if row.measure != ALPHA and not math.isnan(row.value):
            assert report.percent(row) in page
    assert "Arts &amp; &lt;b&gt;Crafts" in page and "Arts & <b>" not in page
    assert "prompt &lt;/script&gt;" in page
    assert page.count("left out</td>") == 2
    assert page.count("data:image/png") == 8, "of four pairs of b; a is liked in none"
    assert "100% [100, 100] of 24 votes on 12 pairs" in report.sentence(study, found)


def test_a_report_of_no_votes(folder, study, raters, tmp_path):
    attention = findings.attend(raters, [], 0.7)
    found = report.write_report(tmp_path, folder, study, [], attention)
    assert found == [] and report.sentence(study, found) == "There are no votes yet."
    assert "There are no votes that count yet." in (tmp_path / "report.html").read_text()
