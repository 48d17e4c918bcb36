"""Tables hold every number of a comparison, and CSV files give them back."""

import csv
import dataclasses
import math
import re

import pytest

from diffusionrl_jax.evaluation import tables
from diffusionrl_jax.evaluation.categories import by_category
from diffusionrl_jax.evaluation.differences import Difference, differences
from diffusionrl_jax.mistakes import UserError
from tests.evaluation.test_categories import CATEGORIES, SCORES
from tests.evaluation.test_categories import PROMPTS as CATEGORISED
from tests.evaluation.test_differences import scored
from tests.evaluation.test_statistics import PROMPTS, compared


def test_tables_hold_every_number(tmp_path):
    rows = compared()
    tables.write_csv(tmp_path / "results.csv", rows)
    with open(tmp_path / "results.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert [float(row["value"]) for row in read] == [row.value for row in rows]
    assert tables.as_csv(tables.read_csv(tmp_path / "results.csv")) == tables.as_csv(rows)
    text = tables.markdown(rows, PROMPTS)
    assert re.search(r"\| ours +\| 0.450 \[", text)
    assert "two: 4 images of 2 prompts" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") >= 3 for line in lines)
    assert tables.markdown_table(["a", "b"], [["1", ""]]) == (
        "| a   | b   |\n|-----|-----|\n| 1   |     |"
    )


def test_a_table_has_a_row_for_each():
    text = tables.categories_markdown(by_category(SCORES, CATEGORISED, CATEGORIES))
    assert "## set by Kind" in text and "## set by Place" in text
    assert "| x      | s        | 3        | 2.000 [0.500, 5.000] | 2.500 [1.000, 5.500] |" in text
    assert tables.categories_markdown([]) == ""


def test_tables_hold_every_difference(tmp_path):
    base, ours, prompts = scored(0.05)
    scores = {"base": {"s": {"r": base}}, "ours": {"s": {"r": ours}}}
    found = differences(scores, {"s": prompts})
    text = tables.differences_markdown(found)
    assert "| s" in text and "ours - base" in text and "1 comparison" in text
    lines = tables.as_csv(found, Difference).decode().splitlines()
    assert lines[0] == "model,against,set,scorer,value,low,high,p,p_holm,images"
    assert len(lines) == 2
    assert tables.differences_markdown([]) == ""


def test_what_is_no_comparison(tmp_path):
    for content in (b"prompt,kind\na cat,Animals\n", b"model\n\xff\n", b"model\n" + b"a" * 2**18):
        (tmp_path / "other.csv").write_bytes(content)
        with pytest.raises(UserError, match="other.csv is no comparison of models"):
            tables.read_csv(tmp_path / "other.csv")


def test_a_number_has_its_interval_where_there_is_one():
    one = compared()[0]
    told = dataclasses.replace(one, value=0.5, low=0.25, high=0.75)
    assert tables.cell(told) == "0.500 [0.250, 0.750]"
    assert tables.cell(dataclasses.replace(told, low=math.nan)) == "0.500"
    assert tables.cell(None) == ""
