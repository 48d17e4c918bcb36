"""A loaded model together with the chain that it is sampled by."""

import dataclasses

import numpy as np
from jax.sharding import Mesh

from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_to_image import TextToImage


@dataclasses.dataclass(frozen=True)
class Policy:
    """A loaded model together with the chain that it is sampled by.

    Attributes:
      model: the networks.
      process: the chain.
      params: the parameters by network, placed on the mesh: the denoiser's under its name, "vae"
        and "text_encoder".
      mesh: the devices.
      by_blocks: whether the networks gather their split parameters themselves, one block at a time.
    """

    model: TextToImage
    process: Process
    params: dict[str, Parameters]
    mesh: Mesh
    by_blocks: bool = False

    @property
    def denoiser(self) -> Parameters:
        """The denoiser's parameters."""
        return self.params[self.model.denoiser_name]

    def without_denoiser(self) -> "Policy":
        """Returns the same policy without the denoiser's parameters, so that nothing holds them."""
        frozen = {
            name: tree for name, tree in self.params.items() if name != self.model.denoiser_name
        }
        return dataclasses.replace(self, params=frozen)

    def with_denoiser(self, denoiser: Parameters) -> dict[str, Parameters]:
        """Returns all parameters, with these in place of the denoiser's."""
        return self.params | {self.model.denoiser_name: denoiser}

    @property
    def empty_ids(self) -> np.ndarray:
        """The tokens of the empty prompt, int32 [tokens]."""
        return self.model.tokenize([""])[0]
