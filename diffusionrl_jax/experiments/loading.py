"""Opens the model that a config names, on the devices."""

import functools

import jax.numpy as jnp
from jax.sharding import Mesh

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.pipeline import Policy
from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.distributed.mesh import frozen_sharding, make_mesh
from diffusionrl_jax.experiments import checks
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models import attention
from diffusionrl_jax.models.text_to_image import load_model

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
        mesh=mesh,
    )
    process = make_process(model.scheduler_config, config.sampler.steps)
    return Policy(model, process, params, mesh)


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
