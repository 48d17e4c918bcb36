"""Describes how large a transformer's folder is, without reading its weights."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.data.files import resolve
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.description import Description
from diffusionrl_jax.models.folders import hub, tensor_files
from diffusionrl_jax.models.mmdit import published
from diffusionrl_jax.models.mmdit.build import make_flux_transformer, make_joint_transformer
from diffusionrl_jax.models.mmdit.configs import read_configs
from diffusionrl_jax.models.mmdit.model import latent_size, patch_size
from diffusionrl_jax.models.mmdit.pipelines import PIPELINES, T5
from diffusionrl_jax.models.mmdit.positions import TABLE
from diffusionrl_jax.models.stable_diffusion import arithmetic
from diffusionrl_jax.models.stable_diffusion.autoencoder import vae_factor


def describe_mmdit(
    name: str, size: tuple[int, int] | None = None, text_tokens: int | None = None
) -> Description:
    """Returns the sizes of a model in a folder, or of a published one that is not here.

    Args:
      name: a folder, here or on the hub, as `config.model` names it.
      size: the height and width of the pictures in pixels; None means the transformer's own size.
      text_tokens: how many tokens T5 reads; None is what the pipeline reads.

    Raises:
      UserError, FileNotFoundError: there is no such model, or it is not supported.
    """
    configs, counted = _open(name)
    pipeline = PIPELINES[configs["pipeline"]["_class_name"]]
    encoders = [one for one in pipeline.tokenizers if one in configs]
    has_t5 = any(pipeline.kinds[one].name == T5 for one in encoders)
    # A T5 that is left out is one token.
    tokens = (text_tokens or pipeline.text_tokens) if has_t5 else 1
    if pipeline.reads_clip_states:
        tokens += configs["text_encoder"]["max_position_embeddings"]
    sides = latent_size(configs, size)
    transformer, vae = configs["transformer"], configs["vae"]
    pixels = math.prod(sides) * vae_factor(vae) ** 2
    places = math.prod(sides) // patch_size(configs) ** 2
    return Description(
        denoiser=counted["transformer"],
        vae=counted["vae"],
        text_encoder=sum(counted[one] for one in encoders),
        largest_encoder=max(_gathered(configs[one], counted[one]) for one in encoders),
        network=network(transformer, tokens, places),
        latent=vae["latent_channels"] * math.prod(sides),
        image=3 * pixels,
        text=tokens * transformer["joint_attention_dim"] + transformer["pooled_projection_dim"],
        decoded=lambda itemsize: arithmetic.decoder(vae, pixels, itemsize),
        denoiser_shapes=functools.partial(_denoiser_shapes, transformer),
    )


def _gathered(encoder: Mapping[str, Any], parameters: int) -> int:
    """Returns how many of a text encoder's parameters are gathered together, at most.

    Of T5 they are the embedding of its words and one block.
    """
    if "d_model" not in encoder:
        return parameters
    words = encoder["vocab_size"] * encoder["d_model"]
    return words + (parameters - words) // encoder["num_layers"]


def _denoiser_shapes(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the shapes of a transformer's parameters, which no picture's size changes."""
    if "pos_embed_max_size" not in config:
        return make_flux_transformer(config, jnp.float32).template()
    width = config["num_attention_heads"] * config["attention_head_dim"]
    table = np.broadcast_to(np.float32(0), (1, config["pos_embed_max_size"] ** 2, width))
    size = (config["patch_size"],) * 2
    return make_joint_transformer(config, table, size, jnp.float32).template()


def _open(name: str) -> tuple[Mapping[str, Any], Mapping[str, int]]:
    """Returns a model's configs, and the number of parameters of each of its networks."""
    if not name:
        raise UserError("config.model is empty: name a diffusers folder or a hub id.")
    if name in published.CONFIGS and not resolve(name, "config.model").exists():
        return published.CONFIGS[name], published.PARAMETERS[name]
    folder = hub.locate(name)
    configs = read_configs(folder)
    kinds = PIPELINES[configs["pipeline"]["_class_name"]].kinds
    stored = tensor_files.open_networks(
        {folder / one: kind.stem for one, kind in kinds.items() if one in configs}
    )
    stored["transformer"].pop(TABLE, None)
    return configs, {
        one: sum(math.prod(tensor.shape) for tensor in tensors.values())
        for one, tensors in stored.items()
    }


# How many values a block stores for its backward pass, for each number of each token, where nothing
# is computed again: those of a block of both streams, of one that is dual, of the last one, and of
# one that has a single stream. And how many more than others one that is dual asks for.
STACKED, STACKED_OF_DUAL, STACKED_OF_LAST, STACKED_OF_SINGLE = 58, 74, 47, 53
KEPT_OF_DUAL = 8


def network(config: Mapping[str, Any], words: int, places: int) -> arithmetic.Network:
    """Returns the blocks of a transformer, with their operations.

    Args:
      config: the fields of the transformer's config.json.
      words: the number of tokens of a text.
      places: the number of tokens of a picture.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    tokens, layers = places + words, config["num_layers"]
    singles = config.get("num_single_layers", 0)

    def block(squares, squares_of_words, modulations, attended, stacked, is_dual=False):
        """A block with so many products with width x width numbers for each kind of token."""
        kept = arithmetic.KEPT_OF_LAYER + (KEPT_OF_DUAL if is_dual else 0)
        squares_of_all = places * squares + words * squares_of_words + modulations
        return arithmetic.Block(
            2.0 * width**2 * squares_of_all + 4.0 * width * attended,
            tokens * width,
            kept * tokens * width,
            tokens,
            config["num_attention_heads"],
            1 + is_dual,
            width**2 * (squares + squares_of_words + modulations),
            stacked * tokens * width,
            fills_up=True,
        )

    blocks = []
    for layer in range(layers):
        # Queries, keys, values and outputs have one square each, the layers behind eight.
        squares, squares_of_words, modulations, attended = 12, 12, 12, tokens**2
        stacked, is_dual = STACKED, layer in (config.get("dual_attention_layers") or ())
        if is_dual:
            squares, modulations, stacked = squares + 4, modulations + 3, STACKED_OF_DUAL
            attended += places**2
        if layer == layers - 1 and not singles:
            squares_of_words, modulations = 2, modulations - 4
            stacked = STACKED_OF_LAST
            attended -= words * tokens
        blocks.append(block(squares, squares_of_words, modulations, attended, stacked, is_dual))
    # FLUX's later blocks have the same weights for both kinds of tokens.
    single = block(12, 12, 3, tokens**2, STACKED_OF_SINGLE)
    blocks += [dataclasses.replace(single, parameters=width**2 * (12 + 3))] * singles
    cut = config["in_channels"] * (1 if singles else config["patch_size"] ** 2)
    entry = places * 2 * cut + words * config["joint_attention_dim"]
    operations = 2.0 * width * entry + sum(one.operations for one in blocks)
    return arithmetic.Network(tuple((one,) for one in blocks), operations, 0)
