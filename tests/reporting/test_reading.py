"""Which folders of runs a report can be made of."""

import pytest

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.reporting import reading
from tests.reporting.runs import write_run


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "names no run"),
        (["/no/such/run"], "/no/such/run is not the folder of a run"),
        (["{run}", "{run}"], "names a run twice"),
        (["{run}@best"], "a report is of a whole run. Leave out @best"),
    ],
)
def test_what_is_no_run_is_named(names, message, workdir):
    with pytest.raises(UserError, match=message):
        reading.read_runs([name.format(run=workdir) for name in names])


def test_paths_may_have_commas(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert reading.split_runs([f"{tmp_path}/a,b", "c,d"]) == [f"{tmp_path}/a,b", "c", "d"]


def test_a_damaged_evaluation_is_left_out(tmp_path, caplog):
    workdir = write_run(tmp_path / "damaged")
    (tmp_path / "damaged" / "evaluations" / "00000004.zip").write_bytes(b"PK")
    (run,) = reading.read_runs([workdir])
    assert [record.step for record in run.evaluations] == [0, 8]
    assert "00000004.zip is damaged" in caplog.text
