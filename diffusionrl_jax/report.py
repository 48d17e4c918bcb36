"""Writes a page of one run or of several: curves, pictures, what it cost, whether it was fooled.

    python -m diffusionrl_jax.report --run=runs/emoji --output=report.html

The page is a single file below 10 MB that needs no network. It is made from what the runs have left
in their folders; main.py writes one at the end of each run.
"""

from absl import flags

from diffusionrl_jax.command_line import programs
from diffusionrl_jax.data.files import as_path
from diffusionrl_jax.reporting.reading import split_runs
from diffusionrl_jax.reporting.report import write_report

RUN = flags.DEFINE_multi_string(
    "run", [], "The folder of a run; several after commas, or by the flag again."
)
OUTPUT = flags.DEFINE_string("output", None, "The HTML file to write.", required=True)


def main(_):
    with programs.clear_errors():
        write_report(split_runs(RUN.value), as_path(OUTPUT.value, "--output"))


if __name__ == "__main__":
    programs.run(main)
