"""Latents of prompts, drawn outside of training."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffusionrl_jax.diffusion.rollout import conditions, noise_keys, rollout
from diffusionrl_jax.diffusion.schedule import Schedule
from diffusionrl_jax.distributed.mesh import gather_parameters
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.stable_diffusion.model import StableDiffusion


def draw_latents(
    model: StableDiffusion,
    schedule: Schedule,
    mesh: Mesh,
    params: Mapping[str, Parameters],
    ids: jax.Array,
    empty_ids: jax.Array,
    indices: jax.Array,
    seed: int,
    *,
    eta: float,
    guidance_scale: float,
) -> jax.Array:
    """Final latents of prompts; the noise depends on the seed and each one's index alone.

    Args:
      model, schedule: the networks and the chain.
      mesh: over which the parameters are split.
      params: "unet" and "text_encoder"; others are not used.
      ids: int32 [batch, tokens], the prompts.
      empty_ids: int32 [tokens], the empty prompt.
      indices: int32 [batch].
      seed: of the noise.
      eta, guidance_scale: as in `rollout`.

    Returns:
      x_0, float32 [batch, channels, height, width], the VAE's scaling factor applied.
    """
    unet = gather_parameters(params["unet"], mesh, model.unet.dtype)
    text_encoder = gather_parameters(params["text_encoder"], mesh)
    fold_in = lambda index: jax.random.fold_in(jax.random.key(seed), index)
    text = conditions(
        model.encode_text(text_encoder, ids),
        model.encode_text(text_encoder, empty_ids[None]),
        guidance_scale,
    )
    latents, _ = rollout(
        model,
        schedule,
        unet,
        text,
        noise_keys(jax.vmap(fold_in)(indices), schedule.steps),
        jnp.zeros((len(ids), 0), jnp.int32),
        eta=eta,
        guidance_scale=guidance_scale,
    )
    return latents
