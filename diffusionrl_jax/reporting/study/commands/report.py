"""Tells what people prefer, how much they agree, and what reward models say beside them.

    python -m diffusionrl_jax.study report --votes=returned/*.json

It writes report.html and report.csv, also while people still answer.
"""

from absl import flags

from diffusionrl_jax.command_line import programs
from diffusionrl_jax.data.files import prepare_folder
from diffusionrl_jax.data.sources import find_files
from diffusionrl_jax.experiments import fields
from diffusionrl_jax.reporting.study import report, votes
from diffusionrl_jax.reporting.study.findings import attend
from diffusionrl_jax.reporting.study.records import USUAL_FOLDER, read_study, study_folder
from diffusionrl_jax.reporting.study.returned import read_all

FOLDER = flags.DEFINE_string("folder", USUAL_FOLDER, "The study's folder.")
VOTES = flags.DEFINE_multi_string(
    "votes", [], "A file that a rater has sent back, with * for several; more by the flag again."
)
NEEDED = flags.DEFINE_float(
    "needed", 0.7, "The share of answered attention checks that must be right, or no vote counts."
)
OUTPUT = flags.DEFINE_string("output", None, "The folder to write; that of the study.")


def main(_):
    """Runs the command."""
    with programs.clear_errors():
        fields.check_flags("study", {NEEDED.name: NEEDED.value})
        folder = study_folder(FOLDER.value)
        study = read_study(folder)
        output = prepare_folder(OUTPUT.value or str(folder), "--output")
        votes.prepare(folder, study)
        files = [path for name in VOTES.value for path in find_files(name)]
        cast = read_all(folder, study, files)
        attention = attend(votes.read_raters(folder), cast, NEEDED.value)
        found = report.write_report(output, folder, study, cast, attention)
        print(report.sentence(study, found))
