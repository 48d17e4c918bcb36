"""The database of votes, which SQLite reads back."""

import contextlib
import dataclasses
import sqlite3

import pytest

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.reporting.study import votes


def test_votes_of_another_study_are_not_mixed_in(folder, study):
    with pytest.raises(UserError, match="the votes of another study"):
        votes.prepare(folder, dataclasses.replace(study, identity="another"))


def test_a_vote_is_neither_changed_nor_taken_back(folder, raters):
    assert votes.vote(folder, raters[0], 0, "tie") == "tie"
    with contextlib.closing(sqlite3.connect(folder / votes.FILE)) as connection:
        for statement in ("UPDATE votes SET choice = 'left'", "DELETE FROM votes"):
            with pytest.raises(sqlite3.IntegrityError, match="a vote stays"):
                connection.execute(statement)


def test_raters_are_added_and_keep_their_links(folder, study):
    first = votes.add_raters(folder, study, votes.SERVED, 2)
    assert votes.add_raters(folder, study, votes.SERVED, 1) == first
    exported = votes.add_raters(folder, study, votes.EXPORTED, 2, per_rater=4)
    assert votes.add_raters(folder, study, votes.SERVED, 3)[:2] == first
    found = votes.read_raters(folder)
    assert [rater.number for rater in found] == [1, 2, 3, 4, 5]
    assert len({rater.token for rater in found}) == 5
    assert all(len(rater.token) == 22 for rater in found)
    assert [len(votes.read_questions(folder, rater)) for rater in exported] == [6, 6]
