"""Scores that lie with their checkpoints, and which of these are kept by them."""

import contextlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.runs import checkpoints
from tests.processes import shapes_of
from tests.runs.test_checkpoints import assert_identical, make_state


def test_checkpoints_of_earlier_versions_open(tmp_path):
    """They have no record; their scores lie beside the steps."""
    options = dict(keep_last=1, keep_best=1, best_metric="best")
    store = checkpoints.Checkpoints(str(tmp_path), keep_last=3)
    for step in (1, 2, 3):
        store.save(step, make_state(step))
    store.close()
    for step in (1, 2, 3):
        shutil.rmtree(tmp_path / str(step) / "record")
    (tmp_path / "metrics.json").write_text('{"1": 0.5, "2": NaN, "3": 0.1}')
    store = checkpoints.Checkpoints(str(tmp_path), **options)
    assert store.best_step() == 1
    assert_identical(store.restore(shapes_of(make_state(0)))[1], make_state(3))
    store.save(4, make_state(4), {"best": 0.2})
    store.close()
    assert store.steps() == (1, 4)


@pytest.mark.parametrize("scores", ["record", "old"])
def test_nothing_is_deleted_while_its_score_is_unreadable(tmp_path, capsys, scores):
    options = dict(keep_last=2, keep_best=1, best_metric="best")
    store = checkpoints.Checkpoints(str(tmp_path), keep_last=9, keep_best=1, best_metric="best")
    for step, score in enumerate((0.1, 0.9, 0.2, 0.3), start=1):
        store.save(step, {"x": jnp.ones(3)}, {"best": score})
    store.close()
    if scores == "record":  # The best one's, by a bit in the score.
        path = tmp_path / "2" / "record" / "metadata"
        path.write_text(path.read_text().replace("0.9", "0.0"))
    else:
        for step in (1, 2, 3, 4):
            shutil.rmtree(tmp_path / str(step) / "record")
        (tmp_path / "metrics.json").write_text('{"1": 0.1')
    store = checkpoints.Checkpoints(str(tmp_path), **options)
    for step in (5, 6):
        store.save(step, {"x": jnp.ones(3)}, {"best": 0.0})
    store.close()
    assert store.steps() == ((2, 4, 5, 6) if scores == "record" else (1, 2, 3, 4, 5, 6))
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == (1 if scores == "record" else 4)
    assert "checkpoint 2 is not deleted" in "".join(warnings)


def test_scores_by_other_settings_are_not_compared(tmp_path):
    """Scores near 2 before, near 0.2 after: the best of each are kept."""

    def opened(by):
        store = checkpoints.Checkpoints(str(tmp_path), 1, 1, "best", scored_by=by)
        return contextlib.closing(store)

    with opened("before") as store:
        for step, score in enumerate((2.1, 2.9, 2.3), start=1):
            store.save(step, {"x": jnp.ones(3)}, {"best": score})
    with opened("after") as store:
        assert store.steps() == (2, 3) == tuple(store.scored_otherwise())
        with pytest.raises(UserError, match=r"by the settings of now, but \[2, 3\] by others"):
            store.best_step()
        assert store.is_best(0.1)
        for step, score in enumerate((0.1, 0.3, 0.2), start=4):
            store.save(step, {"x": jnp.ones(3)}, {"best": score})
        assert not store.is_best(0.25) and store.is_best(0.35)
        assert store.best_step() == 5
    with opened("before") as store:
        assert store.steps() == (2, 5, 6)
        assert store.best_step() == 2 and store.scored_otherwise() == [5, 6]
        assert store.is_best(3.0) and not store.is_best(0.4)
    with opened(None) as store:  # Who names no settings takes all scores as alike.
        assert store.best_step() == 2 and store.scored_otherwise() == []


def test_scores_that_do_not_say_what_they_are_by_count_as_by_the_present_settings(tmp_path):
    options = dict(keep_last=1, keep_best=1, best_metric="best")
    for step, (by, score) in enumerate(((None, 0.5), ("now", 0.2), ("now", 0.3)), start=1):
        with contextlib.closing(
            checkpoints.Checkpoints(str(tmp_path), **options, scored_by=by)
        ) as store:
            store.save(step, {"x": jnp.ones(3)}, {"best": score})
    assert store.steps() == (1, 3)
    assert store.best_step() == 1


def test_which_score_would_be_kept(tmp_path):
    store = checkpoints.Checkpoints(str(tmp_path), keep_last=1, keep_best=2, best_metric="best")
    assert store.is_best(0.0) and not store.is_best(np.nan)
    for step, score in enumerate((-1.0, 0.0), start=1):
        store.save(step, {"x": jnp.ones(3)}, {"best": score})
    store.wait()
    assert store.is_best(-0.5) and not store.is_best(-1.0)
    assert store.best_step() == 2
    store.close()
    none_is_kept = checkpoints.Checkpoints(str(tmp_path), best_metric="best")
    assert not none_is_kept.is_best(9.0)
    assert none_is_kept.best_step() == 2
