"""Trains a text-to-image diffusion model by reinforcement learning.

    python -m diffusionrl_jax.main --config=configs/emoji.py

It says first where the run lives, here in runs/emoji; --workdir names another place. The same
command, started again, goes on where it was.
"""

import pathlib
import re

import jax
from absl import flags, logging
from ml_collections import config_flags

from diffusionrl_jax.command_line import programs, start
from diffusionrl_jax.data.files import as_path
from diffusionrl_jax.training.loop import train

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where checkpoints, metrics and pictures go; runs/ and the config's name unless told.",
)
flags.mark_flag_as_required("config")


def default_workdir(config_file: str) -> str:
    """Where a run lives whose user names no place.

    Args:
      config_file: as of --config: a path, and after a colon what the file's `get_config` is called
        with.

    Returns:
      Below the current folder, "runs/hps" of "configs/hps.py", and "runs/hps-emoji" of
      "configs/hps.py:emoji". Whatever is no letter, digit, "_", "." or "-" after the colon is "-".
    """
    path, _, variant = config_file.partition(":")
    names = [pathlib.PurePath(path).stem, re.sub(r"[^\w.-]+", "-", variant)]
    return f"runs/{'-'.join(filter(None, names))}"


def main(_):
    with programs.clear_errors():
        start.start_devices()
        workdir = WORKDIR.value
        if workdir is None:
            workdir = default_workdir(config_flags.get_config_filename(flags.FLAGS["config"]))
        workdir = str(as_path(workdir, "--workdir"))
        if jax.process_index() == 0:
            logging.info("Workdir: %s", workdir)
        start.use_compilation_cache(workdir)
        train(CONFIG.value, workdir)


if __name__ == "__main__":
    programs.run(main)
