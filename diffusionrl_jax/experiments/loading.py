"""Opens the model that a config names, on the devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.pipeline import Policy
from diffusionrl_jax.distributed.mesh import (
    FSDP,
    frozen_sharding,
    make_mesh,
    spans_slices,
    undivided_share,
)
from diffusionrl_jax.experiments import checks
from diffusionrl_jax.experiments.chain import make_chain
from diffusionrl_jax.learning.adaptation import make_lora, make_merge
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models import attention
from diffusionrl_jax.models.families import load_model
from diffusionrl_jax.models.lora import UP, Lora
from diffusionrl_jax.models.lora_files import read_lora
from diffusionrl_jax.models.parameters import Parameters

FROZEN = ("text_encoder", "vae")


def load_policy(config: Config, path: str | None = None) -> Policy:
    """Opens the model of a config, or another folder, sharded over the config's mesh.

    Args:
      config: see `experiments/config.py`.
      path: the folder; None means the one that the config names.

    Raises:
      UserError, FileNotFoundError: a field or a weight does not fit; the message names it.
    """
    if not (path or config.model):
        raise UserError("config.model is empty: name a diffusers folder or a hub id.")
    mesh = make_mesh(checks.fsdp(config))
    attention.choose(config.attention, mesh)  # Refuses what these devices lack.
    model, params = load_model(
        path or config.model,
        dtype=jnp.dtype(config.dtype),
        convolution=config.convolution,
        remat=checks.remat(config),
        sharding=functools.partial(network_sharding, mesh, config.mesh.split_frozen),
        attention=config.attention,
        size=checks.size(config),
        mesh=mesh,
        text_tokens=config.sampler.text_tokens or None,
        embedded_guidance=config.sampler.embedded_guidance or None,
    )
    if spans_slices(mesh):
        logging.warning(
            "config.mesh.fsdp=%d splits parameters over several slices, between which they are "
            "gathered by the slower network: a number that divides the chips of a slice is faster, "
            "if there is room.",
            mesh.shape[FSDP],
        )
    if undivided_share(mesh, params[model.denoiser_name]) > 1 / 2:
        logging.warning(
            "config.mesh.fsdp=%d divides so few dimensions of %s that most of its denoiser is "
            "whole on every device: set it to 0, or to a power of two.",
            *(mesh.shape[FSDP], path or config.model),
        )
    process = make_chain(config, model)
    policy = Policy(model, process, params, mesh, checks.gathers_by_blocks(config))
    if config.lora.start and not config.lora.rank and path in (None, config.model):
        lora, factors = read_start(config, policy)
        merged = make_merge(mesh, policy.denoiser, lora)(factors)
        policy = dataclasses.replace(policy, params=policy.with_denoiser(merged))
    return policy


def read_start(config: Config, policy: Policy) -> tuple[Lora, Parameters]:
    """Reads the LoRA file that a config begins with; see `lora_files.read_lora`."""
    name = policy.model.denoiser_name
    start, one_rank = config.lora.start, bool(config.lora.rank)
    return read_lora(start, "config.lora.start", name, policy.denoiser, one_rank)


def start_factors(config: Config, policy: Policy) -> Parameters | None:
    """Returns the LoRA factors that training begins with; None where they are drawn.

    Raises:
      UserError, FileNotFoundError: as `lora_files.read_lora`, or the file's LoRA is another one.
    """
    wanted = make_lora(config)
    if wanted is None or not config.lora.start:
        return None
    lora, factors = read_start(config, policy)
    names = lora.kernels(policy.denoiser).keys()
    if lora.rank != wanted.rank or names != wanted.kernels(policy.denoiser).keys():
        raise UserError(
            f"config.lora.start={config.lora.start!r} has rank {lora.rank} and changes "
            f"{len(names)} modules, other than config.lora.rank={wanted.rank} and its targets do: "
            f"set config.lora.rank={lora.rank} and the targets that it was trained with, or the "
            "rank to 0, to merge it."
        )
    # The scale of here takes the place of the file's own.
    ratio = lora.scale / wanted.scale
    scaled = lambda path, factor: ratio * factor if path[-2].key == UP else factor
    return jax.tree.map_with_path(scaled, factors)


def network_sharding(mesh: Mesh, split: bool, networks):
    """Returns how a model's networks are sharded.

    The denoiser is sharded as what is trained, and the other networks as `frozen_sharding` says.

    Args:
      mesh: the devices.
      split: whether large parameters of the other networks are split over the mesh.
      networks: each network's tree of parameters or shapes, by name.
    """
    return {
        name: frozen_sharding(mesh, params, split or name not in FROZEN)
        for name, params in networks.items()
    }
