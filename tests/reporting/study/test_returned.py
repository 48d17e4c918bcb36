"""Votes that come back as files are read beside the database, or refused."""

import json

import pytest

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.reporting.study import votes
from diffusionrl_jax.reporting.study.returned import read_all, read_returned


@pytest.fixture
def exported(folder, study):
    return votes.add_raters(folder, study, votes.EXPORTED, 2)


@pytest.fixture
def write(study, tmp_path):
    """A function that writes what a page saves: its path."""

    def file(asked, answers, **changes):
        path = tmp_path / f"returned_{len(list(tmp_path.iterdir()))}.json"
        values = {"study": study.identity, "rater": asked.token, "answers": answers}
        path.write_text(json.dumps(values | changes))
        return path

    return file


def test_files_and_database_together(folder, study, raters, exported, write):
    votes.vote(folder, raters[0], 2, "tie")
    files = [
        write(exported[0], {"0": "left", "13": "right"}),
        write(exported[1], {"3": "tie"}),
        # The same rater's file, saved again later, and with one answer altered.
        write(exported[0], {"0": "right", "13": "right", "5": "left"}),
    ]
    found = {(one.rater, one.number): one for one in read_all(folder, study, files)}
    assert {key: one.choice for key, one in found.items()} == {
        (raters[0].number, 2): "tie",
        (exported[0].number, 0): "left",
        (exported[0].number, 13): "right",
        (exported[0].number, 5): "left",
        (exported[1].number, 3): "tie",
    }
    for (number, place), one in found.items():
        rater = next(rater for rater in votes.read_raters(folder) if rater.number == number)
        assert one.question == votes.read_questions(folder, rater)[place]


@pytest.mark.parametrize(
    ("answers", "changes", "message"),
    [
        ({}, {"study": "another"}, "the votes of another study"),
        ({}, {"rater": "A" * 22}, "of a rater whom .* has not asked"),
        ({}, {"rater": None}, "of a rater whom .* has not asked"),
        ([], {}, r"answers=\[\] is no object"),
        ({"14": "left"}, {}, "to question '14' cannot be"),
        ({"-1": "left"}, {}, "to question '-1' cannot be"),
        ({"\u0663": "left"}, {}, "cannot be"),
        ({"0": "a"}, {}, "the answer 'a' to question '0' cannot be"),
        ({"0": ["left"]}, {}, "cannot be"),
    ],
)
def test_what_is_no_rater_s_file(folder, study, exported, write, answers, changes, message):
    path = write(exported[0], answers, **changes)
    with pytest.raises(UserError, match=message):
        read_returned(path, folder, study)
