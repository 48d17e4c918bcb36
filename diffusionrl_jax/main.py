"""Trains a text-to-image diffusion model by reinforcement learning.

    python -m diffusionrl_jax.main --config=configs/emoji.py

The program first says where the run lives, here in runs/emoji; --workdir names another place. The
same command, started again, goes on where it was.
"""

import pathlib
import re

import jax
from absl import flags, logging
from ml_collections import config_flags

from diffusionrl_jax.command_line import programs, start
from diffusionrl_jax.data.files import as_path
from diffusionrl_jax.experiments import fields
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.reporting.report import report_run
from diffusionrl_jax.training.loop import train

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where checkpoints, metrics and pictures go; runs/ and the config's name unless told.",
)
PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps",
    None,
    "Iterations of which a profiler's trace is written into the workdir, such as 10:12.",
)
REPORT_EVERY = flags.DEFINE_integer(
    "report_every",
    0,
    "After how many iterations report.html, a page about the run in its workdir, is written anew; "
    "0 writes it at the end alone.",
)
flags.mark_flag_as_required("config")


def parse_steps(text: str | None) -> range:
    """Returns the iterations of --profile_steps: 10, 11 and 12 for "10:12", none for None.

    Raises:
      UserError: the text is not of that form.
    """
    if text is None:
        return range(0)
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    steps = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
    if not steps or steps.start < 1:
        raise UserError(f"--profile_steps={text} must be a number from 1 on, or two as in 10:12.")
    return steps


def default_workdir(config_file: str) -> str:
    """Returns where a run lives whose user names no workdir.

    Args:
      config_file: the value of --config: a path and, behind a colon, the argument of the file's
        `get_config`.

    Returns:
      A folder below the current one: "runs/hps" for "configs/hps.py", and "runs/hps-emoji" for
      "configs/hps.py:emoji". Behind the colon, anything but letters, digits, "_", "." and "-"
      becomes "-".
    """
    path, _, variant = config_file.partition(":")
    names = [pathlib.PurePath(path).stem, re.sub(r"[^\w.-]+", "-", variant)]
    return f"runs/{'-'.join(filter(None, names))}"


def choose_workdir(named: str | None, config_file: str, process_count: int) -> str:
    """Returns the workdir that a user names, or else the default.

    Args:
      named: the value of --workdir, or None.
      config_file: as in `default_workdir`.
      process_count: how many processes run the program. The default is a folder of each host's own,
        so that several need a name.

    Raises:
      UserError: several processes are given no name.
    """
    if named is not None:
        return named
    default = default_workdir(config_file)
    if process_count > 1:
        name = pathlib.PurePath(default).name
        raise UserError(
            f"The {process_count} processes of this run need one workdir that all of them see: "
            f"give --workdir=gs://BUCKET/{name}, or a folder on a disk that the hosts share."
        )
    return default


def main(_):
    with programs.clear_errors():
        profiled = parse_steps(PROFILE_STEPS.value)
        fields.check_flags("main", {REPORT_EVERY.name: REPORT_EVERY.value})
        start.start_devices()
        config_file = config_flags.get_config_filename(flags.FLAGS["config"])
        workdir = choose_workdir(WORKDIR.value, config_file, jax.process_count())
        workdir = str(as_path(workdir, "--workdir"))
        if jax.process_index() == 0:
            logging.info("Workdir: %s", workdir)
        start.use_compilation_cache(workdir)
        every = REPORT_EVERY.value

        def after(done: int) -> None:
            if every and done % every == 0:
                report_run(workdir)

        if train(CONFIG.value, workdir, profiled, after):
            report_run(workdir)


if __name__ == "__main__":
    programs.run(main)
