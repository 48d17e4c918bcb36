"""The raters of a study and their votes, in an SQLite database that several processes may use.

A vote is in the database, through to the disk, before it is confirmed. It is appended once, and
never changed.
"""

import contextlib
import dataclasses
import secrets
import sqlite3
from collections.abc import Iterator

from etils import epath

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.reporting.study.questions import CHOICES, Question, ask
from diffusionrl_jax.reporting.study.records import Study

FILE = "votes.sqlite"
SERVED, EXPORTED = "served", "exported"
TOKEN_BYTES = 16
WAIT = 30  # Seconds in which another process may finish writing.
TABLES = f"""
    CREATE TABLE IF NOT EXISTS study (identity TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS raters (
        number INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, kind TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS questions (
        rater INTEGER NOT NULL REFERENCES raters (number), number INTEGER NOT NULL,
        pair INTEGER NOT NULL, left TEXT NOT NULL, right TEXT NOT NULL,
        PRIMARY KEY (rater, number));
    CREATE TABLE IF NOT EXISTS votes (
        rater INTEGER NOT NULL, question INTEGER NOT NULL,
        choice TEXT NOT NULL CHECK (choice IN {CHOICES}),
        time TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
        PRIMARY KEY (rater, question),
        FOREIGN KEY (rater, question) REFERENCES questions (rater, number));
    CREATE TRIGGER IF NOT EXISTS unchanged BEFORE UPDATE ON votes
        BEGIN SELECT RAISE(ABORT, 'a vote stays'); END;
    CREATE TRIGGER IF NOT EXISTS kept BEFORE DELETE ON votes
        BEGIN SELECT RAISE(ABORT, 'a vote stays'); END;
"""


@dataclasses.dataclass(frozen=True)
class Rater:
    """One who is asked.

    Attributes:
      number: the rater's number, from 1.
      token: the secret by which the rater is known.
      kind: `SERVED` or `EXPORTED`.
    """

    number: int
    token: str
    kind: str


@dataclasses.dataclass(frozen=True)
class Vote:
    """One answer.

    Attributes:
      rater: the rater's number.
      number: the number of the question among the rater's own, from 0.
      question: what was asked.
      choice: one of `questions.CHOICES`.
    """

    rater: int
    number: int
    question: Question
    choice: str

    @property
    def pair(self) -> int:
        """The number of the pair that was asked of."""
        return self.question.pair


@contextlib.contextmanager
def _connect(folder: epath.Path) -> Iterator[sqlite3.Connection]:
    """Opens the database for one thread.

    Raises:
      UserError: it cannot be opened, read or written now.
    """
    path = folder / FILE
    try:
        with contextlib.closing(sqlite3.connect(path, WAIT, isolation_level=None)) as connection:
            # Not only a kill of the process, but one of the machine, too, loses no vote.
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            yield connection
    except sqlite3.Error as error:
        raise UserError(
            f"{path} cannot be used ({error}): make room on the disk, or put the file back."
        ) from None


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commits what is written in the block through to the disk, or none of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def prepare(folder: epath.Path, study: Study) -> None:
    """Makes the database of a study, if it is missing.

    Raises:
      UserError: it cannot be used, or holds the votes of another study.
    """
    with _connect(folder) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(TABLES)
        with _transaction(connection):
            found = connection.execute("SELECT identity FROM study").fetchone()
            if found is None:
                connection.execute("INSERT INTO study VALUES (?)", (study.identity,))
    if found and found[0] != study.identity:
        raise UserError(
            f"{folder / FILE} holds the votes of another study than {folder}/study.json: put back "
            "the one that belongs to the other, or choose another --folder."
        )


def add_raters(
    folder: epath.Path, study: Study, kind: str, count: int, per_rater: int = 0
) -> list[Rater]:
    """Adds raters with their questions until there are as many of a kind as are wanted.

    Args:
      folder: the study's folder.
      study: the study.
      kind: `SERVED` or `EXPORTED`.
      count: how many there shall be. If there are more, they stay.
      per_rater: how many pairs each new one is asked; 0 means all.

    Returns:
      All raters of the kind, with those that were there before.
    """
    with _connect(folder) as connection, _transaction(connection):
        (all_raters,) = connection.execute("SELECT COUNT(*) FROM raters").fetchone()
        for number in range(1 + all_raters, 1 + all_raters + count - len(_of(connection, kind))):
            row = number, secrets.token_urlsafe(TOKEN_BYTES), kind
            connection.execute("INSERT INTO raters VALUES (?, ?, ?)", row)
            connection.executemany(
                "INSERT INTO questions VALUES (?, ?, ?, ?, ?)",
                [
                    (number, place, question.pair, question.left, question.right)
                    for place, question in enumerate(ask(study, number - 1, per_rater))
                ],
            )
        return _of(connection, kind)


def _of(connection: sqlite3.Connection, kind: str) -> list[Rater]:
    rows = connection.execute("SELECT * FROM raters WHERE kind = ? ORDER BY number", (kind,))
    return [Rater(*row) for row in rows]


def find_rater(folder: epath.Path, token: str) -> Rater | None:
    """Returns the rater with a token, or None."""
    with _connect(folder) as connection:
        row = connection.execute("SELECT * FROM raters WHERE token = ?", (token,)).fetchone()
    return row and Rater(*row)


def read_raters(folder: epath.Path) -> list[Rater]:
    """Returns all raters, by their numbers."""
    with _connect(folder) as connection:
        rows = connection.execute("SELECT * FROM raters ORDER BY number").fetchall()
    return [Rater(*row) for row in rows]


def read_questions(folder: epath.Path, rater: Rater) -> list[Question]:
    """Returns a rater's questions in their order."""
    with _connect(folder) as connection:
        rows = connection.execute(
            "SELECT pair, left, right FROM questions WHERE rater = ? ORDER BY number",
            (rater.number,),
        ).fetchall()
    return [Question(*row) for row in rows]


def read_votes(folder: epath.Path, rater: Rater) -> list[Vote]:
    """Returns a rater's votes in the order of the questions."""
    with _connect(folder) as connection:
        rows = connection.execute(
            "SELECT question, pair, left, right, choice FROM votes JOIN questions"
            " ON questions.rater = votes.rater AND questions.number = votes.question"
            " WHERE votes.rater = ? ORDER BY question",
            (rater.number,),
        ).fetchall()
    return [Vote(rater.number, row[0], Question(*row[1:4]), row[4]) for row in rows]


def vote(folder: epath.Path, rater: Rater, number: int, choice: str) -> str | None:
    """Appends a vote, unless the question is answered already.

    Args:
      folder: the study's folder.
      rater: who votes.
      number: the number of the question among the rater's own.
      choice: one of `questions.CHOICES`.

    Returns:
      The choice that is on the disk, which is the first one; None if there is no such question.

    Raises:
      UserError: the vote cannot be written, and is not counted.
    """
    key = rater.number, number
    with _connect(folder) as connection, _transaction(connection):
        asked = "SELECT 1 FROM questions WHERE rater = ? AND number = ?"
        if connection.execute(asked, key).fetchone() is None:
            return None
        connection.execute(
            "INSERT INTO votes (rater, question, choice) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (*key, choice),
        )
        first = "SELECT choice FROM votes WHERE rater = ? AND question = ?"
        return connection.execute(first, key).fetchone()[0]
