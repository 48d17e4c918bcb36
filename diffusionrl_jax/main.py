"""Trains a text-to-image diffusion model by reinforcement learning.

    python -m diffusionrl_jax.main --config=configs/emoji.py --workdir=/tmp/emoji

Started again with the same workdir it goes on where it was.
"""

from absl import flags
from ml_collections import config_flags

from diffusionrl_jax import programs
from diffusionrl_jax.data.files import as_path
from diffusionrl_jax.distributed import start
from diffusionrl_jax.training import train

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and pictures go.")
flags.mark_flags_as_required(["config", "workdir"])


def main(_):
    with programs.clear_errors():
        start.start_devices()
        workdir = str(as_path(WORKDIR.value, "--workdir"))
        start.use_compilation_cache(workdir)
        train(CONFIG.value, workdir)


if __name__ == "__main__":
    programs.run(main)
