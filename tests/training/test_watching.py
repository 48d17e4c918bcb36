"""Runs are watched, and may be stopped."""

import pytest

from diffusionrl_jax import main
from diffusionrl_jax.evaluation import records, watch
from diffusionrl_jax.monitoring.metrics import read_rows
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
