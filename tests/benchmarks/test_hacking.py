"""Runs that fool their rewards on purpose: the table's arithmetic, and that they are warned of."""

from pathlib import Path

import pytest

from diffusionrl_jax import main as program
from diffusionrl_jax.monitoring.metrics import read_rows

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def hacking(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import hacking

    return hacking


def evaluated(step, pairs, people, falls):
    return {
        "step": step,
        "pairs/recognition": pairs,
        "people/recognition": people,
        "watch/gain_entropy/recognition": 0.0,
        "small/reward_mean": -1.0 + step,
        "watch/falls": falls,
    }


def test_the_first_warning_is_set_beside_the_loss(hacking):
    rows = [
        evaluated(0, 0.9, 1.0, 0.0),
        evaluated(1, 0.92, 0.96, 0.0),
        {"step": 2, "small/reward_mean": 0.0},
        evaluated(3, 0.88, 1.0, 2.0),
        evaluated(4, 0.8, 0.93, 0.0),
        evaluated(5, 0.9, 0.9, 3.0),
    ]
    assert hacking.warned_and_lost(rows) == (3, 4)
    assert hacking.warned_and_lost(rows[:2]) == (None, None)
    row = hacking.row_of("small_files", 1, rows)
    assert row == ["small_files", "1", "-1.000 to 4.000", "3", "2.0", "4", "10.0"]


@pytest.mark.slow
def test_small_files_are_warned_of_before_the_judge_has_lost(hacking, tmp_path, compilation_cache):
    config = hacking.small_files()
    config.iterations = 5
    program.train(config, str(tmp_path))
    warned, lost = hacking.warned_and_lost(read_rows(str(tmp_path)))
    assert warned is not None and lost is not None and warned < lost
