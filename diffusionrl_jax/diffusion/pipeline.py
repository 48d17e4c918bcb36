"""A model with the chain that it is sampled by."""

import dataclasses

import numpy as np
from jax.sharding import Mesh

from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_to_image import TextToImage


@dataclasses.dataclass(frozen=True)
class Policy:
    """A loaded model with the chain that it is sampled by.

    Attributes:
      model, process: the networks and the chain.
      params: the denoiser's under its name, "vae" and "text_encoder", placed on the mesh.
      mesh: the devices.
    """

    model: TextToImage
    process: Process
    params: dict[str, Parameters]
    mesh: Mesh

    @property
    def denoiser(self) -> Parameters:
        """The denoiser's parameters."""
        return self.params[self.model.denoiser_name]

    def without_denoiser(self) -> "Policy":
        """The same without the denoiser's parameters, so that nothing holds them."""
        frozen = {
            name: tree for name, tree in self.params.items() if name != self.model.denoiser_name
        }
        return dataclasses.replace(self, params=frozen)

    def with_denoiser(self, denoiser: Parameters) -> dict[str, Parameters]:
        """All parameters, with these in place of the denoiser's."""
        return self.params | {self.model.denoiser_name: denoiser}

    @property
    def empty_ids(self) -> np.ndarray:
        """int32 [tokens], the empty prompt."""
        return self.model.tokenize([""])[0]
