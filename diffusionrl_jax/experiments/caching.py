"""Encodes or draws a config's pretraining pictures in advance of any run."""

import shlex

import ml_collections
from absl import logging

from diffusionrl_jax.data.config_type import Config, copied
from diffusionrl_jax.data.files import prepare_folder
from diffusionrl_jax.data.prompt_sources import make_prompts
from diffusionrl_jax.experiments import fetching, fields, planning
from diffusionrl_jax.experiments.base_pictures import (
    BASE,
    choose_pictures,
    draw_pictures,
    picture_count,
)
from diffusionrl_jax.experiments.fetching import LORA, MODEL, PICTURES, PROMPTS
from diffusionrl_jax.experiments.loading import load_policy
from diffusionrl_jax.experiments.pretraining import (
    LATENTS,
    encode_pictures,
    model_fingerprint,
    open_source,
)
from diffusionrl_jax.mistakes import UserError


def cache_latents(config: Config, output: str, text_embeddings: bool = False) -> None:
    """Encodes `config.pretraining.pictures` with `config.model`'s VAE, or has the model draw them.

    Args:
      config: see `experiments/config.py`.
      output: the folder that the latents are written to, local or `gs://`.
      text_embeddings: whether what the text encoder makes of the texts is kept too.

    Raises:
      UserError, OSError: an input is bad; the message names it.
    """
    fields.check(config)
    name = config.pretraining.pictures
    if not name or name.startswith(LATENTS):
        raise UserError(
            f"config.pretraining.pictures={name!r} names no pictures to encode: see docs/data.md."
        )
    output = str(prepare_folder(output, "--output"))
    if name.startswith(BASE):
        picture_count(config)  # Refuses a bad one before the model is looked at.
        if text_embeddings:
            raise UserError(
                f"config.pretraining.pictures={name!r} has no embeddings: of pictures that the "
                "base model draws the token ids alone are kept. Leave out --text_embeddings."
            )
    config = copied(config)
    config.evaluation.sets = ml_collections.ConfigDict()  # Nothing is evaluated.
    opened = PROMPTS if name.startswith(BASE) else PICTURES
    fetching.bring(config, kinds=(MODEL, LORA, opened))
    config, _ = planning.resolve(config, trains=False)
    if name.startswith(BASE):
        _draw(config, output)
    else:
        _encode(config, output, text_embeddings)
    pictures = shlex.quote(f"{LATENTS}{output}")
    logging.info("Wrote %s: train with --config.pretraining.pictures=%s", output, pictures)


def _draw(config: Config, output: str) -> None:
    sources = [make_prompts(task.prompts, config.seed) for task in config.tasks.values()]
    policy = load_policy(config)
    about = (config, policy.model, policy.params, policy.mesh)
    encoder = model_fingerprint(policy.model, policy.params["vae"], policy.mesh)
    draw_pictures(choose_pictures(*about, sources), *about, output, encoder)


def _encode(config: Config, output: str, text_embeddings: bool) -> None:
    name, policy = config.pretraining.pictures, load_policy(config)
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
