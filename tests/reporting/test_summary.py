"""A report's numbers, against sums by hand and the evaluation's own intervals."""

import json

import numpy as np

from diffusionrl_jax.evaluation import statistics
from diffusionrl_jax.reporting import reading, summary
from tests.reporting.runs import write_run


def test_what_a_run_has_cost(run):
    found = dict(summary.cost(run))
    assert found["images drawn to train on"] == "2,560"
    assert found["at work"] == "0:01:17"  # 5 s, and 8 times 9 s.
    assert found["devices times hours"].startswith("0.0856 of TPU")
    assert found["images a second, median"] == "32"
    assert summary.seconds_by_phase(run) == [("sample", 6.0), ("update", 3.0)]


def test_tables_have_the_intervals_of_the_evaluation(run):
    (table,) = summary.evaluation_table(run)
    (cells,) = (row for row in table.rows if row[1] == "preference")
    row = dict(zip(table.head, cells, strict=True))
    record = run.evaluations[-1]
    bootstrap = statistics.Bootstrap(record.prompts["new_pairs"])
    scores = record.scores["new_pairs"]["preference"]
    expected = bootstrap.interval(bootstrap.mean(scores), scores)
    assert row["iteration 8"] == "{:.3f} [{:.3f}, {:.3f}]".format(*expected)
    assert row["change"].startswith("+1.4") and row["reward"] == "preference"


def test_warnings_are_shown(tmp_path):
    folder = tmp_path / "fooled"
    write_run(folder)
    rows = (
        (folder / "metrics.jsonl")
        .read_text()
        .replace('"watch/kl', '"watch/noise_length": 2.0, "watch/kl')
    )
    (folder / "metrics.jsonl").write_text(rows)
    (run,) = reading.read_runs([str(folder)])
    first, last = summary.warnings(run)
    assert first.startswith("Iteration 4: ") and "2.00 times as long" in last
    assert "may be fooled" in last


def test_what_learns_from_pairs_draws_none(tmp_path):
    folder = tmp_path / "pairs"
    write_run(folder)
    config = json.loads((folder / "config.json").read_text())
    config["algorithm"]["name"] = "dpo_offline"
    (folder / "config.json").write_text(json.dumps(config))
    (run,) = reading.read_runs([str(folder)])
    assert dict(summary.cost(run))["images of pairs to train on"] == "2,560"
    assert dict(summary.what_was_trained(run))["images an iteration"] == "320"


def test_pictures_without_a_score_are_counted(run):
    last = run.evaluations[-1]
    last.scores["new_pairs"]["preference"][:12] = np.nan
    last.settings["new_pairs/other"] = "now"
    run.evaluations[0].settings["new_pairs/other"] = "before"
    (table,) = summary.evaluation_table(run)
    rows = {row[1]: dict(zip(table.head, row, strict=True)) for row in table.rows}
    assert rows["preference"]["iteration 8"].endswith(", 12 of 16 without a score")
    assert rows["other"]["change"] == "" and rows["preference"]["change"]
