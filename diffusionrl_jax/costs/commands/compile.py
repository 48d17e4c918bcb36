"""Tells whether a config fits a TPU that is not there, and how fast it could be.

    python -m diffusionrl_jax.benchmark compile --config=configs/joint.py --topology=v5e:4x4

The train step's own programs are compiled with libtpu (`pip install 'jax[tpu]'`), for parameters of
which only the shapes exist. Nothing runs.
"""

import json

import diffusers
import jax
from absl import flags
from ml_collections import config_flags

from diffusionrl_jax.command_line import programs
from diffusionrl_jax.costs import dry_run
from diffusionrl_jax.data.files import prepare_file, prepare_folder, write_whole
from diffusionrl_jax.experiments import fields
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders.published import HUB_IDS

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
TOPOLOGY = flags.DEFINE_string("topology", None, "As libtpu names it: v5e:4x4, v5p:4x4x4, v6e:8x8.")
MODEL = flags.DEFINE_enum("model", None, list(HUB_IDS), "A published model, for config.model.")
WHOLE = flags.DEFINE_bool("whole", False, "Compiles the fused step as one program.")
PHASES = flags.DEFINE_list("phases", None, "Only these, such as sample,update.")
NEEDED = flags.DEFINE_bool("needed", True, "Counts what the mathematics needs, too.")
PROGRAMS = flags.DEFINE_string("programs", None, "A folder for the compiled programs' texts.")
QUICK = flags.DEFINE_bool("quick", False, "Compiles with less effort, several times faster.")
JSON = flags.DEFINE_string("json", None, "A file for the results.")


def main(_):
    """Runs the command."""
    diffusers.utils.logging.set_verbosity_error()
    jax.config.update("jax_platforms", "cpu")  # Compiling for a TPU needs no TPU.
    with programs.clear_errors():
        if CONFIG.value is None or TOPOLOGY.value is None:
            raise UserError("--config and --topology must both be given.")
        config = CONFIG.value
        fields.check(config)
        output = JSON.value is not None and prepare_file(JSON.value, "--json")
        folder = PROGRAMS.value and str(prepare_folder(PROGRAMS.value, "--programs"))
        if MODEL.value:
            config.model = HUB_IDS[MODEL.value]
        result = dry_run.dry_run(
            config,
            TOPOLOGY.value,
            whole=WHOLE.value,
            only=PHASES.value,
            needed=NEEDED.value,
            save=folder,
            quick=QUICK.value,
        )
        print(result.markdown())
        if output:
            write_whole(output, json.dumps(result.to_json(), indent=2, default=str).encode())
