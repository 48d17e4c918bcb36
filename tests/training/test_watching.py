"""Runs are watched, and may be stopped."""

import math
import shutil
import types

import numpy as np
import pytest

from diffusionrl_jax import main
from diffusionrl_jax.distributed import processes
from diffusionrl_jax.evaluation import records, watch
from diffusionrl_jax.monitoring.metrics import read_rows
from diffusionrl_jax.training.watching import Watcher
from tests.processes import steps_of


def test_a_run_keeps_what_it_has_evaluated(finished):
    assert records.recorded_steps(str(finished)) == [0, 2, 3]
    rows = read_rows(str(finished))
    for step in (0, 2, 3):
        record = records.read_record(str(finished), step)
        assert {name: len(prompts) for name, prompts in record.prompts.items()} == {
            "pairs": 8,
            "people": 16,
        }
        size = record.scores["people"]["size"]
        assert size.mean() == pytest.approx(rows[step]["people/size"], rel=1e-6)
        assert len(record.pictures["people"]) == 16
    assert len(record.distances["people"]) == 4


def test_a_run_is_compared_with_its_base_model(finished):
    rows = read_rows(str(finished))
    assert (rows[0]["watch/kl_to_base"], rows[0]["watch/noise_length"]) == (0.0, 1.0)
    assert rows[0]["watch/diversity/people"] == 1.0
    assert 0 < rows[2]["watch/kl_to_base"] < rows[3]["watch/kl_to_base"]
    assert "watch/kl_to_base" not in rows[1], "it is computed at evaluations"


@pytest.mark.slow
def test_a_process_that_has_read_nothing_exchanges_as_much(
    finished, make_config, tmp_path, monkeypatch
):
    """Of several processes the first alone reads what the base model did; all go on alike."""
    gather, counts = processes.gather, []

    def counted(values):
        counts[-1] += 1
        return gather(values)

    monkeypatch.setattr(processes, "gather", counted)
    for read in (Watcher._read, lambda *args: None):
        monkeypatch.setattr(Watcher, "_read", read)
        workdir = shutil.copytree(finished, tmp_path / str(len(counts)))
        counts.append(0)
        main.train(make_config(iterations=4), str(workdir))
    assert counts[0] == counts[1] > 0


class Observer:
    """Says of each step what it is told."""

    def __init__(self, seed=0):
        self.scores = np.zeros(8, np.float32)
        self.settings, self.compared_by = {"people/size": str(seed)}, "CLIP"
        self.evaluator = types.SimpleNamespace(
            prompts={"people": ["a"]}, logged=lambda evaluation: ({"best": 0.5}, {})
        )

    def __call__(self, params, step):
        prompts = {"people": [f"prompt {n}" for n in range(8)]}
        scores = {"people": {"size": self.scores}}
        distances, pictures = {"people": {"prompt 0": 1.0}}, {"people": {}}
        kept = records.Record(step, prompts, scores, distances, pictures, self.settings)
        return None, kept, {"noise_length": 1.0}


def test_lost_pictures_are_no_best(make_config, tmp_path):
    observer = Observer()
    watcher = Watcher(make_config(), observer, str(tmp_path), 0)
    assert watcher.evaluate({}, 0)[0]["best"] == 0.5
    observer.scores = np.full(8, np.nan, np.float32)
    values, _ = watcher.evaluate({}, 2)
    assert math.isnan(values["best"]) and values["watch/falls"] == 1.0
    assert watcher.fallen == ["8 more of the 8 pictures of people have no score"]


def test_a_run_is_not_its_own_base_model(make_config, tmp_path, caplog):
    watcher = Watcher(make_config(), Observer(), str(tmp_path), 4)
    assert "not compared with its base model" in caplog.text
    values, _ = watcher.evaluate({}, 4)
    assert values == {"best": 0.5, "watch/noise_length": 1.0} and watcher.fallen == []


def test_what_is_evaluated_otherwise_is_named_once(make_config, tmp_path, caplog):
    observer = Observer()
    watcher = Watcher(make_config(), observer, str(tmp_path), 0)
    watcher.evaluate({}, 0)
    observer.settings = {"people/size": "another"}
    for step in (2, 4):
        watcher.evaluate({}, step)
    assert caplog.text.count("people/size are not compared") == 1


@pytest.mark.slow
def test_a_warning_can_stop_a_run(make_config, tmp_path, monkeypatch, caplog):
    falls = lambda base, now, *rest: ["the judge fell"] if now.step == 2 else []
    monkeypatch.setattr(watch, "falls", falls)
    config = make_config(**{"watch.stop": True, "evaluation.every": 1, "iterations": 4})
    advice = (
        rf"config.watch.stop: .*the judge fell.* go back to {tmp_path}@1, raise "
        r"config.algorithm.policy_gradient.kl_weight \(now 0\) or config.pretraining.weight "
        r"\(now 0\), or lower config.optimizer.learning_rate. Iteration 2 is saved"
    )
    with pytest.raises(ValueError, match=advice):
        main.train(config, str(tmp_path))
    assert steps_of(tmp_path) == [0, 1, 2]
    # It goes on from there, and is still compared with its base model.
    config.watch.stop = False
    assert main.train(config, str(tmp_path))
    assert read_rows(str(tmp_path))[3]["watch/diversity/people"] < 1.1
    assert "not compared" not in caplog.text
