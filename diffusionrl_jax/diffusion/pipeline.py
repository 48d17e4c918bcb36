"""A model with the chain that it is sampled by."""

import dataclasses

import numpy as np
from jax.sharding import Mesh

from diffusionrl_jax.diffusion.schedule import Schedule
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.stable_diffusion.model import StableDiffusion


@dataclasses.dataclass(frozen=True)
class Policy:
    """A loaded Stable Diffusion with the chain that it is sampled by.

    Attributes:
      model, schedule: the networks and the chain.
      params: "unet", "vae" and "text_encoder", placed on the mesh.
      mesh: the devices.
    """

    model: StableDiffusion
    schedule: Schedule
    params: dict[str, Parameters]
    mesh: Mesh

    @property
    def empty_ids(self) -> np.ndarray:
        """int32 [tokens], the empty prompt."""
        return self.model.tokenize([""])[0]
