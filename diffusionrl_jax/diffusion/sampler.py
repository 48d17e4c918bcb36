"""Draws images from prompts, outside of training."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.drawing import draw_latents
from diffusionrl_jax.diffusion.pipeline import Policy
from diffusionrl_jax.distributed.mesh import batch_sharding, gather_parameters, place, replicated
from diffusionrl_jax.distributed.microbatch import largest_divisor, map_microbatches
from diffusionrl_jax.distributed.processes import gather_rows
from diffusionrl_jax.models.parameters import Parameters


class Sampler:
    """Draws images from prompts. The noise depends on the seed and on the image's index alone.

    One program is compiled, whatever the number of images.

    Args:
      policy: the model, with its chain and devices.
      sampler: the config fields eta and guidance_scale.
      batch: how many images are drawn at a time, rounded up to a multiple of the devices.
      decode: how many of these each device decodes at a time, at most; 0 means all.
    """

    def __init__(self, policy: Policy, sampler: Config, batch: int, decode: int = 0):
        self.policy = policy
        share = -(-batch // policy.mesh.size)
        self.batch = share * policy.mesh.size
        decodings = share // largest_divisor(share, decode or share)
        model = policy.model

        def draw(params, ids, empty_ids, indices, seed):
            latents = draw_latents(
                *(model, policy.process, policy.mesh, params, ids, empty_ids, indices, seed),
                eta=sampler.eta,
                guidance_scale=sampler.guidance_scale,
                by_blocks=policy.by_blocks,
            )
            vae = gather_parameters(params["vae"], policy.mesh)
            return map_microbatches(
                lambda latents: model.decode(vae, latents),
                latents,
                decodings,
                policy.mesh,
            )

        self._draw = jax.jit(draw, out_shardings=batch_sharding(policy.mesh))

    def __call__(
        self, params: Mapping[str, Parameters], prompts: Sequence[str], seed: int, first: int = 0
    ) -> np.ndarray:
        """Draws one image for each prompt.

        Args:
          params: the parameters by network: the denoiser's, "vae" and "text_encoder".
          prompts: any number of prompts.
          seed: the seed of the noise.
          first: the index of the first image; the others follow it.

        Returns:
          float32 [n, height, width, 3] in [0, 1], in every process.
        """
        policy = self.policy
        sharding = batch_sharding(policy.mesh)
        empty_ids = place(policy.empty_ids, replicated(policy.mesh))
        images = [np.zeros((0, *policy.model.image_shape), np.float32)]
        for start in range(0, len(prompts), self.batch):
            part = list(prompts[start : start + self.batch])
            padded = part + [""] * (self.batch - len(part))
            indices = first + start + np.arange(self.batch)
            drawn = self._draw(
                dict(params),
                place(policy.model.tokenize(padded), sharding),
                empty_ids,
                place(indices, sharding),
                seed,
            )
            images.append(gather_rows(drawn)[: len(part)])
        return np.concatenate(images)
