"""Describes how large a transformer's folder is, without reading its weights."""

import math
from collections.abc import Mapping
from typing import Any

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.description import Description
from diffusionrl_jax.models.folders import hub, tensor_files
from diffusionrl_jax.models.mmdit.configs import read_configs
from diffusionrl_jax.models.mmdit.model import latent_size
from diffusionrl_jax.models.mmdit.pipelines import PIPELINES, T5
from diffusionrl_jax.models.mmdit.positions import TABLE
from diffusionrl_jax.models.stable_diffusion import arithmetic
from diffusionrl_jax.models.stable_diffusion.autoencoder import vae_factor


def describe_mmdit(name: str, size: tuple[int, int] | None = None) -> Description:
    """Returns the sizes of a model in a folder.

    Args:
      name: a folder, here or on the hub, as `config.model` names it.
      size: the height and width of the pictures in pixels; None means the transformer's own size.

    Raises:
      UserError, FileNotFoundError: there is no such model, or it is not supported.
    """
    if not name:
        raise UserError("config.model is empty: name a diffusers folder or a hub id.")
    folder = hub.locate(name)
    configs = read_configs(folder)
    pipeline = PIPELINES[configs["pipeline"]["_class_name"]]
    names = [network for network in pipeline.kinds if network in configs]
    stored = tensor_files.open_networks({folder / one: pipeline.kinds[one].stem for one in names})
    stored["transformer"].pop(TABLE, None)
    counted = {
        one: sum(math.prod(tensor.shape) for tensor in tensors.values())
        for one, tensors in stored.items()
    }
    encoders = [one for one in pipeline.tokenizers if one in configs]
    # A T5 that is left out is one token.
    tokens = configs["text_encoder"]["max_position_embeddings"]
    has_t5 = any(pipeline.kinds[one].name == T5 for one in encoders)
    tokens += pipeline.text_tokens if has_t5 else 1
    sides = latent_size(configs, size)
    transformer, vae = configs["transformer"], configs["vae"]
    pixels = math.prod(sides) * vae_factor(vae) ** 2
    return Description(
        denoiser=counted["transformer"],
        vae=counted["vae"],
        text_encoder=sum(counted[one] for one in encoders),
        network=joint_network(transformer, tokens, sides),
        latent=vae["latent_channels"] * math.prod(sides),
        image=3 * pixels,
        text=tokens * transformer["joint_attention_dim"] + transformer["pooled_projection_dim"],
        decoded=lambda itemsize: arithmetic.decoder(vae, pixels, itemsize),
    )


def joint_network(
    config: Mapping[str, Any], words: int, sides: tuple[int, int]
) -> arithmetic.Network:
    """Returns the blocks of Stable Diffusion 3's transformer, with their operations.

    Args:
      config: the fields of the transformer's config.json.
      words: the number of tokens of a text.
      sides: the height and width of a latent.
    """
    heads, patch = config["num_attention_heads"], config["patch_size"]
    width = heads * config["attention_head_dim"]
    places = math.prod(sides) // patch**2
    cut = patch**2 * config["in_channels"]
    entry = places * cut + words * config["joint_attention_dim"]
    parts = []
    for layer in range(config["num_layers"]):
        # Queries, keys, values and outputs have one square each, the layers behind eight.
        squares, squares_of_words, kept = 12, 12, arithmetic.KEPT_OF_LAYER
        attended = (places + words) ** 2
        modulations = 12
        if layer in (config.get("dual_attention_layers") or ()):
            squares, modulations, kept = squares + 4, modulations + 3, kept + 8
            attended += places**2
        if layer == config["num_layers"] - 1:
            squares_of_words, modulations = 2, modulations - 4
            attended -= words * (places + words)
        operations = 2.0 * width**2 * (places * squares + words * squares_of_words + modulations)
        parts.append(
            arithmetic.Block(
                operations + 4.0 * width * attended,
                (places + words) * width,
                kept * (places + words) * width,
                places + words,
                heads,
                width**2 * (squares + squares_of_words + modulations),
            )
        )
    operations = 2.0 * width * (entry + places * cut) + sum(part.operations for part in parts)
    return arithmetic.Network(tuple((part,) for part in parts), operations, 0)
