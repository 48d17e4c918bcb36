"""Encodes a config's pretraining pictures once, so that training reads latents.

    python -m diffusionrl_jax.cache_latents --config=configs/hps.py --output=/data/latents

Stopped and started again it goes on where it was. Train with
--config.pretraining.pictures=latents:/data/latents.
"""

from absl import flags
from ml_collections import config_flags

from diffusionrl_jax.command_line import programs, start
from diffusionrl_jax.experiments import caching

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
OUTPUT = flags.DEFINE_string(
    "output", None, "The folder that the latents are written to.", required=True
)
TEXT_EMBEDDINGS = flags.DEFINE_bool(
    "text_embeddings", False, "Keep the text encoder's states too, instead of the token ids alone."
)
flags.mark_flag_as_required("config")


def main(_):
    with programs.clear_errors():
        start.start_devices()
        caching.cache_latents(CONFIG.value, OUTPUT.value, TEXT_EMBEDDINGS.value)


if __name__ == "__main__":
    programs.run(main)
