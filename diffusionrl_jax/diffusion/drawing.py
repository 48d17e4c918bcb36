"""Draws latents from prompts, outside of training."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffusionrl_jax.diffusion.guidance import conditions
from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.diffusion.rollout import noise_keys, rollout
from diffusionrl_jax.distributed.shards import apply_by_device, gathered
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_to_image import TextToImage


def draw_latents(
    model: TextToImage,
    process: Process,
    mesh: Mesh,
    params: Mapping[str, Parameters],
    ids: jax.Array,
    empty_ids: jax.Array,
    indices: jax.Array,
    seed: int,
    *,
    eta: float,
    guidance_scale: float,
    by_blocks: bool = False,
) -> jax.Array:
    """Draws prompts' final latents. The noise of each depends on the seed and its index alone.

    Args:
      model: the networks.
      process: the chain.
      mesh: the devices over which the parameters are split.
      params: the parameters by network: the denoiser's under its name, and "text_encoder". Others
        are not used.
      ids: the prompts' tokens, int32 [batch, tokens].
      empty_ids: the empty prompt's tokens, int32 [tokens].
      indices: the images' indices, int32 [batch].
      seed: the seed of the noise.
      eta, guidance_scale: as in `rollout`.
      by_blocks: whether the networks gather their split parameters themselves, one block at a time.

    Returns:
      x_0, float32 [batch, ...], with the VAE's scaling factor applied.
    """
    denoiser, text_encoder = (
        gathered(params[name], mesh, model.dtype, by_blocks=by_blocks)
        for name in (model.denoiser_name, "text_encoder")
    )

    def draw(of_all, of_each):
        denoiser, text_encoder, empty_ids, seed = of_all
        ids, indices = of_each
        fold_in = lambda index: jax.random.fold_in(jax.random.key(seed), index)
        text = conditions(
            model.encode_text(text_encoder, ids),
            model.encode_empty(text_encoder, empty_ids[None]),
            guidance_scale,
        )
        latents, _ = rollout(
            model,
            process,
            denoiser,
            text,
            noise_keys(jax.vmap(fold_in)(indices), process.steps),
            jnp.zeros((len(ids), 0), jnp.int32),
            eta=eta,
            guidance_scale=guidance_scale,
        )
        return latents

    of_all = denoiser, text_encoder, empty_ids, seed
    return apply_by_device(draw, of_all, (ids, indices), mesh)
