"""A model that learns from its own pictures, in PyTorch."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def own_pictures(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import own_pictures

    return own_pictures


@pytest.mark.slow
def test_few_steps_are_worse_than_more(own_pictures, capsys):
    own_pictures.main(["--steps=2,8", "--updates=3", "--pictures=8"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    apart = {int(row[0]): float(row[4]) - float(row[3]) for row in rows}
    assert apart[2] > apart[8] > 0
