"""Encodes a config's pretraining pictures once, so that training reads latents.

    python -m diffusionrl_jax.cache_latents --config=configs/hps.py --output=/data/latents

Stopped and started again it goes on where it was. Train with
--config.pretraining.pictures=latents:/data/latents.
"""

from absl import flags, logging
from ml_collections import config_flags

from diffusionrl_jax import programs
from diffusionrl_jax.distributed import start
from diffusionrl_jax.experiment import load_policy
from diffusionrl_jax.pretraining import LATENTS, encode_pictures, open_source

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
OUTPUT = flags.DEFINE_string("output", None, "The folder that the latents are written to.")
flags.mark_flags_as_required(["config", "output"])


def cache_latents(config, output: str) -> None:
    """Encodes `config.pretraining.pictures` with the VAE of `config.model`.

    Raises:
      ValueError, OSError: bad input; the message names it.
    """
    name = config.pretraining.pictures
    if not name or name.startswith(LATENTS):
        raise ValueError(
            f"config.pretraining.pictures={name!r} names no pictures to encode: see docs/data.md."
        )
    policy = load_policy(config)
    source = open_source(name, policy.model, output)
    logging.info("Encoding the %d pictures of %s.", len(source), name)
    encode_pictures(
        source,
        policy.model,
        policy.params["vae"],
        policy.mesh,
        output,
        progress=lambda done: logging.info("%d of %d pictures are encoded.", done, len(source)),
    )
    logging.info("Wrote %s: train with --config.pretraining.pictures=latents:%s", output, output)


def main(_):
    start.set_virtual_devices()
    with programs.clear_errors():
        cache_latents(CONFIG.value, OUTPUT.value)


if __name__ == "__main__":
    programs.run(main)
