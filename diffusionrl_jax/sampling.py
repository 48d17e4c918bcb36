"""Draws images from prompts, outside of training."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from diffusionrl_jax.diffusion.rollout import conditions, noise_keys, rollout
from diffusionrl_jax.distributed.mesh import batch_sharding, gather_parameters, place, replicated
from diffusionrl_jax.distributed.microbatch import largest_divisor, map_microbatches
from diffusionrl_jax.experiment import Policy
from diffusionrl_jax.models.stable_diffusion import Parameters


class Sampler:
    """Draws images from prompts; the noise depends on the seed and the image's index alone.

    Args:
      policy: the model.
      sampler: config fields eta and guidance_scale.
      batch: images drawn at a time, filled up to a multiple of the devices. One program is compiled
        for any number of images.
      decode: of these, latents decoded at a time on each device, at most; 0 is all.
    """

    def __init__(
        self, policy: Policy, sampler: ml_collections.ConfigDict, batch: int, decode: int = 0
    ):
        self.policy = policy
        share = -(-batch // policy.mesh.size)
        self.batch = share * policy.mesh.size
        decodings = share // largest_divisor(share, decode or share)
        model = policy.model

        def draw(params, ids, empty_ids, indices, seed):
            params = {
                name: gather_parameters(
                    network, policy.mesh, model.unet.dtype if name == "unet" else None
                )
                for name, network in params.items()
            }
            fold_in = lambda index: jax.random.fold_in(jax.random.key(seed), index)
            text = conditions(
                model.encode_text(params["text_encoder"], ids),
                model.encode_text(params["text_encoder"], empty_ids[None]),
                sampler.guidance_scale,
            )
            latents, _ = rollout(
                model,
                policy.schedule,
                params["unet"],
                text,
                noise_keys(jax.vmap(fold_in)(indices), policy.schedule.steps),
                jnp.zeros((len(ids), 0), jnp.int32),
                eta=sampler.eta,
                guidance_scale=sampler.guidance_scale,
            )
            return map_microbatches(
                lambda latents: model.decode(params["vae"], latents),
                latents,
                decodings,
                policy.mesh,
            )

        # Replicated, so that every process can read all of them.
        self._draw = jax.jit(draw, out_shardings=replicated(policy.mesh))

    def __call__(
        self, params: Mapping[str, Parameters], prompts: Sequence[str], seed: int, first: int = 0
    ) -> np.ndarray:
        """Images of prompts: float32 [n, height, width, 3] in [0, 1].

        Args:
          params: "unet", "vae" and "text_encoder".
          prompts: any number.
          seed: of the noise.
          first: index of the first image.
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
            images.append(np.asarray(drawn)[: len(part)])
        return np.concatenate(images)
