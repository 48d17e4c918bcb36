"""Measures how fast training is on the devices that are there.

    python -m diffusionrl_jax.benchmark train --config=configs/emoji.py --json=result.json

It times warm iterations of the real train step with the real input pipeline, phase by phase where
the config runs the phases apart. Nothing is saved.
"""

import dataclasses
import json

import diffusers
import jax
from absl import flags
from ml_collections import config_flags

from diffusionrl_jax.command_line import programs, start
from diffusionrl_jax.costs.throughput import measure
from diffusionrl_jax.data.files import prepare_file, prepare_folder, write_whole
from diffusionrl_jax.data.prompt_index import cache_folder
from diffusionrl_jax.experiments import fields
from diffusionrl_jax.mistakes import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
STEPS = flags.DEFINE_integer("steps", 5, "Warm iterations, of which the median counts.")
JSON = flags.DEFINE_string("json", None, "A file for the results.")
CACHE_DIR = flags.DEFINE_string(
    "cache_dir", None, "Where encoded pretraining pictures are kept; below the user's if not given."
)
PROFILE = flags.DEFINE_string("profile", None, "A folder for a trace of one more iteration.")


def main(_):
    """Runs the command."""
    diffusers.utils.logging.set_verbosity_error()
    with programs.clear_errors():
        if CONFIG.value is None:
            raise UserError("--config is missing.")
        fields.check_flags("benchmark train", {STEPS.name: STEPS.value})
        fields.check(CONFIG.value)
        output = JSON.value is not None and prepare_file(JSON.value, "--json")
        profile = PROFILE.value and str(prepare_folder(PROFILE.value, "--profile"))
        start.start_devices()
        start.use_compilation_cache()
        if jax.process_count() > 1 and not CACHE_DIR.value:
            raise UserError("With several processes give a --cache_dir that all of them see.")
        cache_dir = CACHE_DIR.value or str(cache_folder() / "benchmark")
        cache_dir = str(prepare_folder(cache_dir, "--cache_dir"))
        result = measure(CONFIG.value, cache_dir, STEPS.value, profile)
        if jax.process_index() != 0:
            return
        print(result.markdown())
        if output:
            found = dataclasses.asdict(result) | {"rates": result.rates()}
            write_whole(output, json.dumps(found, indent=2).encode())
