"""Writes a page with all pictures inside for each rater, for those who may not serve.

    python -m diffusionrl_jax.study export --a=base --b=runs/emoji@best --prompts=emoji:pairs

A rater opens the file in a browser, and sends back the file of votes that the page saves. `study
report --votes=FILE` reads it.
"""

from absl import flags, logging

from diffusionrl_jax.command_line import programs
from diffusionrl_jax.data.files import prepare_folder, readable_size, write_whole
from diffusionrl_jax.reporting.study import pages, votes
from diffusionrl_jax.reporting.study.commands import opening

OUTPUT = flags.DEFINE_string("output", None, "The folder to write; FOLDER/pages.")


def main(_):
    """Runs the command."""
    with programs.clear_errors():
        opening.check_flags()
        folder, study = opening.open_study()
        output = prepare_folder(OUTPUT.value or f"{folder}/pages", "--output")
        raters = votes.add_raters(
            folder, study, votes.EXPORTED, opening.RATERS.value, opening.PER_RATER.value
        )
        for rater in raters:
            questions = votes.read_questions(folder, rater)
            page = pages.rater_page(study, rater, questions, {}, folder).encode()
            path = output / f"rater_{rater.number}.html"
            write_whole(path, page)
            logging.info("Wrote %s (%s)", path, readable_size(len(page)))
