"""Shows what the mathematics of training asks of common slices of TPUs, whatever the program.

    python -m diffusionrl_jax.benchmark table --config=configs/joint.py

Operations are counted on the train step's jaxpr, and memory on the shapes and shardings of what it
holds, in minutes. With --compiled=FOLDER, the programs themselves are compiled for each slice, as
by `benchmark compile`, in hours (--quick takes a fraction of them). Each result is kept in the
folder, so that the same command continues later.
"""

import json

import diffusers
import jax
from absl import flags, logging
from ml_collections import config_flags

from diffusionrl_jax.command_line import programs
from diffusionrl_jax.costs import slices
from diffusionrl_jax.costs.needs import markdown, needs
from diffusionrl_jax.data.files import prepare_file, prepare_folder, write_whole
from diffusionrl_jax.distributed import chips
from diffusionrl_jax.distributed.devices import devices_of_topology
from diffusionrl_jax.experiments import fields
from diffusionrl_jax.mistakes import UserError, suggestion
from diffusionrl_jax.models.folders.published import HUB_IDS

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
MODELS = flags.DEFINE_list("models", list(HUB_IDS), "Published models, each for config.model.")
TOPOLOGIES = flags.DEFINE_list(
    "topologies", ["v5e:4x4", "v5e:16x16", "v5p:2x4x4", "v6e:8x8"], "As libtpu names them."
)
COMPILED = flags.DEFINE_string("compiled", None, "A folder for what is compiled, if it is.")
PHASES = flags.DEFINE_list("phases", ["sample", "decode", "update"], "Of those to compile.")
QUICK = flags.DEFINE_bool("quick", False, "Compiles with less effort, several times faster.")
JSON = flags.DEFINE_string("json", None, "A file for what the mathematics needs.")


def main(_):
    """Runs the command."""
    diffusers.utils.logging.set_verbosity_error()
    jax.config.update("jax_platforms", "cpu")
    with programs.clear_errors():
        if CONFIG.value is None:
            raise UserError("--config is missing.")
        fields.check(CONFIG.value)
        for model in MODELS.value:
            if model not in HUB_IDS:
                raise UserError(f"--models={model!r} is not known: {suggestion(model, HUB_IDS)}")
        for topology in TOPOLOGIES.value:
            devices_of_topology(topology)  # Refuses what is none.
        output = JSON.value is not None and prepare_file(JSON.value, "--json")
        folder = COMPILED.value and str(prepare_folder(COMPILED.value, "--compiled"))
        found = []
        for model in MODELS.value:
            logging.info("Counting %s.", model)
            found.append(needs(CONFIG.value, model))
        print(markdown(found, TOPOLOGIES.value))
        if output:
            results = [
                {
                    "model": one.model,
                    "images": one.images,
                    "operations_per_image": one.operations,
                    "slices": {
                        topology: {
                            "held": one.held(topology),
                            "images_per_second_per_chip": one.bound(chips.of_topology(topology)),
                        }
                        for topology in TOPOLOGIES.value
                    },
                }
                for one in found
            ]
            write_whole(output, json.dumps(results, indent=2).encode())
        if folder:
            compiled = slices.dry_runs(
                CONFIG.value,
                MODELS.value,
                TOPOLOGIES.value,
                PHASES.value,
                folder,
                quick=QUICK.value,
            )
            print(f"\n{slices.markdown(compiled)}")
