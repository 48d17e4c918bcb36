"""How fast training is on the devices that are there.

    python -m diffusionrl_jax.benchmark train --config=configs/emoji.py --json=result.json

Warm iterations of the real train step, phase by phase where the config runs it so, with the real
input pipeline. Nothing is saved.
"""

import dataclasses
import json

import diffusers
from absl import flags
from ml_collections import config_flags

from diffusionrl_jax import programs
from diffusionrl_jax.benchmarking.throughput import measure
from diffusionrl_jax.data.prompt_index import cache_folder
from diffusionrl_jax.distributed import start

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
STEPS = flags.DEFINE_integer("steps", 5, "Warm iterations, of which the median counts.", 1)
JSON = flags.DEFINE_string("json", None, "A file for the results.")
PROFILE = flags.DEFINE_string("profile", None, "A folder for a trace of one more iteration.")


def main(_):
    """The command."""
    start.start_devices()
    start.use_compilation_cache()
    diffusers.utils.logging.set_verbosity_error()
    with programs.clear_errors():
        if CONFIG.value is None:
            raise ValueError("--config is missing.")
        cache_dir = str(cache_folder() / "benchmark")
        result = measure(CONFIG.value, cache_dir, STEPS.value, PROFILE.value)
    print(result.markdown())
    if JSON.value:
        with open(JSON.value, "w") as file:
            json.dump(dataclasses.asdict(result) | {"rates": result.rates()}, file, indent=2)
