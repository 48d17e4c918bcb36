"""The command tells what the votes of the database and of files that came back say."""

import csv

import pytest

from diffusionrl_jax.reporting.study import votes
from diffusionrl_jax.reporting.study.records import SCRAMBLED, A
from tests.own_flags import program
from tests.reporting.study.conftest import choose

REPORT = "reporting.study.commands.report"


@pytest.fixture
def voted(folder, raters):
    """One rater prefers the first model throughout, and the scrambled picture once."""
    for number, question in enumerate(votes.read_questions(folder, raters[0])):
        sides = {question.left, question.right}
        wanted = A if A in sides else SCRAMBLED
        one = choose(raters[0].number, number, question, wanted)
        votes.vote(folder, raters[0], number, one.choice)


def test_what_was_voted_is_told(folder, study, voted, tmp_path, capsys):
    output = tmp_path / "told"
    with program(REPORT, f"--folder={folder}", f"--output={output}", "--needed=0") as report:
        report.main([])
    assert f"People prefer {study.b} to {study.a} in 0% [0, 0]" in capsys.readouterr().out
    rows = list(csv.DictReader((output / "report.csv").read_text().splitlines()))
    key = ("overall", "preference", "people")
    (row,) = (row for row in rows if (row["group"], row["measure"], row["judge"]) == key)
    assert float(row["value"]) == 0 and int(row["votes"]) == len(study.pairs)
    assert (output / "report.html").exists()


def test_nobody_counts_who_fails_the_checks(folder, voted, capsys):
    with program(REPORT, f"--folder={folder}", "--needed=1") as report:
        report.main([])
    assert "There are no votes yet." in capsys.readouterr().out
    assert (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--needed=2", "--needed=2.0 must be"),
        ("--folder={none}", "holds no study: draw one"),
        ("--votes={none}/*.json", "No file matches"),
    ],
)
def test_what_is_refused_in_one_line(folder, argument, words, tmp_path, capsys):
    argument = argument.format(none=tmp_path / "none")
    with (
        program(REPORT, f"--folder={folder}", argument) as report,
        pytest.raises(SystemExit) as ended,
    ):
        report.main([])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and line.startswith("error: ") and words in line
