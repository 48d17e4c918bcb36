"""The talk with TRL's worker, by a worker that is not TRL."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WORKER = """
import json, sys
import numpy as np
settings = json.loads(sys.stdin.readline())
print(json.dumps({"about": settings["images"]}), flush=True)
for line in iter(sys.stdin.readline, ""):
    if line.strip():
        print(json.dumps({"saved": open(line.strip(), "w").write("weights")}), flush=True)
        continue
    np.save(settings["pictures"], np.ones((2, 4, 4, 3)) * np.array([1, 2])[:, None, None, None])
    asked = {"pictures": settings["pictures"], "prompts": ["an apple", "a zebra"]}
    print(json.dumps(asked), flush=True)
    scores = json.loads(sys.stdin.readline())
    print(json.dumps({"reward": sum(scores)}), flush=True)
"""


@pytest.fixture
def rival(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import rival

    monkeypatch.setattr(rival, "WORKER", tmp_path / "worker.py")
    rival.WORKER.write_text(WORKER)
    return rival


def test_worker_answers_and_asks_line_by_line(rival, tmp_path):
    asked = []

    def reward(pictures, prompts):
        asked.append(prompts)
        return pictures.mean((1, 2, 3)) * 10

    settings = {"images": 7, "threads": 1, "pictures": str(tmp_path / "pictures.npy")}
    with rival.start(sys.executable, settings, reward) as worker:
        assert worker.about == {"about": 7}
        assert [worker.iterate(), worker.iterate()] == [{"reward": 30.0}] * 2
        worker.save(str(tmp_path / "unet"))
        assert (tmp_path / "unet").read_text() == "weights"
        assert worker.iterate() == {"reward": 30.0}
    assert asked == [["an apple", "a zebra"]] * 3


def test_a_worker_that_ends_is_told(rival):
    rival.WORKER.write_text("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="status 3"):
        with rival.start(sys.executable, {"threads": 1}):
            pass
