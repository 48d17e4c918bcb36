"""Fetches all that a config names from the Hugging Face hub, and does no more.

    python -m diffusionrl_jax.fetch --config=configs/hps.py
    python -m diffusionrl_jax.fetch --config=configs/hps.py --output=gs://bucket/fetched

It is for a machine with a network, such as a login node. Training fetches what is missing by
itself, and finds what was fetched here in the same cache. With --output everything is also copied
to a folder or bucket, for machines that do not share the cache, and the flags that train from there
are printed.
"""

import shlex

import jax
from absl import flags
from ml_collections import config_flags

from diffusionrl_jax.command_line import programs
from diffusionrl_jax.data.files import prepare_folder
from diffusionrl_jax.experiments import fetching

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
OUTPUT = flags.DEFINE_string("output", None, "A folder, local or gs://, to copy everything to.")
flags.mark_flags_as_required(["config"])


def main(_):
    jax.config.update("jax_platforms", "cpu")  # Nothing is computed, and a run may have the TPU.
    with programs.clear_errors():
        output = OUTPUT.value is not None and str(prepare_folder(OUTPUT.value, "--output"))
        fetched = fetching.bring(CONFIG.value, only_hub=True)
        lines = fetching.describe(fetched)
        print("\n".join(lines) or "The config names nothing on the Hugging Face hub.")
        if output:
            overrides = fetching.copy(fetched, output)
            print("To train from there, add these to the command:")
            print(" \\\n".join(map(shlex.quote, overrides)))


if __name__ == "__main__":
    programs.run(main)
