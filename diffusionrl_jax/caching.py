"""Encodes a config's pretraining pictures in advance of any run."""

import shlex

import ml_collections
from absl import logging

from diffusionrl_jax.checkpoints import make_writable
from diffusionrl_jax.data.files import as_path
from diffusionrl_jax.experiment import load_policy
from diffusionrl_jax.pretraining import LATENTS, encode_pictures, model_fingerprint, open_source


def cache_latents(
    config: ml_collections.ConfigDict, output: str, text_embeddings: bool = False
) -> None:
    """Encodes `config.pretraining.pictures` with the VAE of `config.model`.

    Args:
      config: see `configs/common.py`.
      output: the folder, local or `gs://`.
      text_embeddings: also keeps what the text encoder makes of the texts.

    Raises:
      ValueError, OSError: bad input; the message names it.
    """
    name = config.pretraining.pictures
    if not name or name.startswith(LATENTS):
        raise ValueError(
            f"config.pretraining.pictures={name!r} names no pictures to encode: see docs/data.md."
        )
    output = str(as_path(output, "--output"))
    make_writable(output, "--output")
    policy = load_policy(config)
    source = open_source(name, policy.model, output)
    logging.info("Encoding the %d pictures of %s.", len(source), name)
    encode_pictures(
        source,
        policy.model,
        policy.params["vae"],
        policy.mesh,
        output,
        model_fingerprint(policy.model, policy.params["vae"], policy.mesh),
        progress=lambda done: logging.info("%d of %d pictures are encoded.", done, len(source)),
        text_encoder=policy.params["text_encoder"] if text_embeddings else None,
    )
    pictures = shlex.quote(f"{LATENTS}{output}")
    logging.info("Wrote %s: train with --config.pretraining.pictures=%s", output, pictures)
