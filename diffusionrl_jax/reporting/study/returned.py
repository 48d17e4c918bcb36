"""Reads the votes that come back as files from pages that were exported."""

from collections.abc import Sequence

from etils import epath

from diffusionrl_jax.data.files import read_json
from diffusionrl_jax.mistakes import UserError, shown
from diffusionrl_jax.reporting.study import votes
from diffusionrl_jax.reporting.study.questions import CHOICES
from diffusionrl_jax.reporting.study.records import Study
from diffusionrl_jax.reporting.study.votes import Vote


def read_returned(path: epath.Path, folder: epath.Path, study: Study) -> list[Vote]:
    """Returns the votes of a file that a rater has sent back.

    Args:
      path: the file, {"study": ..., "rater": ..., "answers": {"0": "left", ...}}.
      folder: the study's folder, whose database knows the rater and the questions.
      study: the study.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it is of another study, of nobody who was asked, or has an answer that cannot be.
    """
    values = read_json(path)
    if values.get("study") != study.identity:
        raise UserError(f"{path} has the votes of another study than {folder}: leave it out.")
    rater = votes.find_rater(folder, str(values.get("rater")))
    if rater is None:
        raise UserError(f"{path} is of a rater whom {folder} has not asked: leave it out.")
    answers = values.get("answers")
    if not isinstance(answers, dict):
        raise UserError(f"{path}: answers={shown(answers)} is no object: ask for the file anew.")
    questions = votes.read_questions(folder, rater)
    found = []
    for number, choice in answers.items():
        known = number.isascii() and number.isdecimal() and int(number) < len(questions)
        if not known or choice not in CHOICES:
            raise UserError(
                f"{path}: the answer {shown(choice)} to question {shown(number)} cannot be: ask "
                "for the file anew."
            )
        found.append(Vote(rater.number, int(number), questions[int(number)], choice))
    return found


def read_all(folder: epath.Path, study: Study, files: Sequence[epath.Path] = ()) -> list[Vote]:
    """Returns all votes of a study: those of its database, and then those of files.

    Where a question is answered twice, the first answer counts.

    Args:
      folder: the study's folder.
      study: the study.
      files: what raters have sent back, as in `read_returned`.

    Raises:
      FileNotFoundError, UserError: a file cannot be used.
    """
    found = {}
    for rater in votes.read_raters(folder):
        for one in votes.read_votes(folder, rater):
            found[one.rater, one.number] = one
    for path in files:
        for one in read_returned(path, folder, study):
            found.setdefault((one.rater, one.number), one)
    return list(found.values())
