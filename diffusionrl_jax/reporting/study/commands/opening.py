"""Opens a study for the commands that show it to people: draws it first, if it is not there."""

import sys

import jax
from absl import flags, logging
from etils import epath
from ml_collections import config_flags

from diffusionrl_jax.command_line import start
from diffusionrl_jax.data.files import prepare_folder
from diffusionrl_jax.experiments import fields
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.reporting.study import drawing, votes
from diffusionrl_jax.reporting.study.records import (
    USUAL_FOLDER,
    Study,
    is_study,
    read_study,
    study_folder,
)

FOLDER = flags.DEFINE_string("folder", USUAL_FOLDER, "For pictures, links and votes.")
A = flags.DEFINE_string("a", "", "One model: base, PATH, or a run's PATH@step, @best or @last.")
B = flags.DEFINE_string("b", "", "The other one, of which the report tells how it does.")
PROMPTS = flags.DEFINE_string(
    "prompts", "", "What to draw, as a task's prompts: a file, suite:NAME, emoji:pairs, ..."
)
PAIRS = flags.DEFINE_integer("pairs", 100, "How many pairs of pictures to draw.")
CATEGORIES = flags.DEFINE_list(
    "categories",
    None,
    "Columns of the prompts' table or suite; the report tells of each of their values. Without it, "
    "of all of a suite's.",
)
SCORERS = flags.DEFINE_list(
    "scorers", None, "Of config.evaluation.scorers, to be set beside people; its head_to_head."
)
CHECKS = flags.DEFINE_integer("checks", 4, "Questions of a known answer, to each rater.")
QUESTION = flags.DEFINE_string(
    "question", "Which picture is the better one for this text?", "What people are asked."
)
SEED = flags.DEFINE_integer("seed", 0, "Of the noise, and of the order of pairs and sides.")
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "How to sample, and by which scorers; that of the run.", lock_config=True
)
RATERS = flags.DEFINE_integer("raters", 5, "How many people are asked.")
PER_RATER = flags.DEFINE_integer("per_rater", 0, "Pairs that each new one is asked; 0 is all.")


def check_flags(**more: int | None) -> None:
    """Refuses numbers out of their range, of the flags here and of more flags by their names."""
    numbers = (PAIRS, CHECKS, SEED, RATERS, PER_RATER)
    fields.check_flags("study", {flag.name: flag.value for flag in numbers} | more)


def open_study() -> tuple[epath.Path, Study]:
    """Returns the folder that the flags name and its study, drawn now if it is not there yet.

    Where several processes have drawn it, the program ends: one alone is to go on.

    Raises:
      UserError, FileNotFoundError: it cannot be drawn, or the folder holds another study.
    """
    folder = study_folder(FOLDER.value)
    if is_study(folder):
        study = read_study(folder)
        for flag, drawn in (
            (A, study.a),
            (B, study.b),
            (PROMPTS, study.prompts),
            (PAIRS, len(study.pairs)),
            (QUESTION, study.question),
            (SEED, study.seed),
        ):
            if flags.FLAGS[flag.name].present and flag.value != drawn:
                raise UserError(
                    f"{folder} holds a study of --{flag.name}={drawn}: choose another --folder for "
                    f"--{flag.name}={flag.value}."
                )
    else:
        study = _draw()
    votes.prepare(folder, study)
    return folder, study


def _draw() -> Study:
    if missing := [f"--{flag.name}" for flag in (A, B, PROMPTS) if not flag.value]:
        raise UserError(f"{FOLDER.value} holds no study yet: give {', '.join(missing)}.")
    start.start_devices()
    names = {drawing.A: A.value, drawing.B: B.value}
    models = drawing.parse_models(names)
    if CONFIG.value:
        fields.check(CONFIG.value)
    config = CONFIG.value or drawing.usual_config(models)
    folder = prepare_folder(FOLDER.value, "--folder")
    study = drawing.draw_study(
        folder,
        config,
        names,
        PROMPTS.value,
        PAIRS.value,
        question=QUESTION.value,
        seed=SEED.value,
        checks=CHECKS.value,
        columns=CATEGORIES.value,
        scorers=SCORERS.value,
    )
    if jax.process_count() > 1:
        logging.info("The pictures are drawn: start the command again, on the first host alone.")
        sys.exit()
    return study
