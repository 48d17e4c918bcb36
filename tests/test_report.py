"""The program writes the page of the runs that it is given."""

import pytest

from diffusionrl_jax.reporting import reading, report
from tests.own_flags import program
from tests.reporting.runs import write_run


def test_the_page_is_that_of_the_runs(tmp_path):
    runs = [str(tmp_path / name) for name in ("foxes", "owls")]
    for seed, run in enumerate(runs):
        write_run(tmp_path / run, seed=seed, images=4)
    flags = (f"--run={runs[0]},{runs[1]}", f"--output={tmp_path}/page.html")
    with program("report", *flags) as command:
        command.main([])
    assert (tmp_path / "page.html").read_text() == report.make_report(reading.read_runs(runs))


def test_what_is_no_run_is_refused_in_one_line(tmp_path, capsys):
    flags = ("--run=/nowhere", f"--output={tmp_path}/page.html")
    with program("report", *flags) as command, pytest.raises(SystemExit) as ended:
        command.main([])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --run=/nowhere is not the folder")
    assert not (tmp_path / "page.html").exists()
