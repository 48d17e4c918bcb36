"""Samples the denoising chain as a policy."""

import flax.struct
import jax
import jax.numpy as jnp

from diffusionrl_jax.diffusion.guidance import denoise_passes, guide
from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.diffusion.rectified_flow import RectifiedFlow
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_to_image import Text, TextToImage


@flax.struct.dataclass
class Steps:
    """What the policy did at K steps of each sample's chain. Samples may have different steps.

    Attributes:
      latents: x_t, from which each step was taken, float32 [batch, K, ...].
      following: x_{t-1}, to which it led, of the same shape.
      log_probs: the log-probability of each step under the parameters that took it, float32 [batch,
        K], nats per element.
    """

    latents: jax.Array
    following: jax.Array
    log_probs: jax.Array


def noise_keys(streams: jax.Array, steps: int) -> jax.Array:
    """Returns the random keys of chains, [batch, steps + 1].

    Args:
      streams: PRNG keys, either one for each sample, [batch], or one for each key, [batch, steps +
        1].
      steps: the number of the chain's steps.
    """
    streams = jnp.broadcast_to(streams.reshape(len(streams), -1), (len(streams), steps + 1))
    fold_in = jax.vmap(jax.vmap(jax.random.fold_in), (0, None))
    return fold_in(streams, jnp.arange(steps + 1))


def guided_output(
    model: TextToImage,
    process: Process,
    params: Parameters,
    text: Text,
    latents: jax.Array,
    indices: jax.Array,
    guidance_scale: float,
) -> jax.Array:
    """Returns the denoiser's output, guided, at a step of the chain.

    Args:
      model, process, params, text, guidance_scale: as in `rollout`.
      latents: the latents before the step, float32 [batch, ...].
      indices: the step's position in the chain, int32 [batch].

    Returns:
      float32 [batch, ...].
    """
    output = denoise_passes(model, params, latents, process.times[indices], text)
    return guide(output, guidance_scale)


def rollout(
    model: TextToImage,
    process: Process,
    params: Parameters,
    text: Text,
    keys: jax.Array,
    kept: jax.Array,
    *,
    eta: float | jax.Array,
    guidance_scale: float,
) -> tuple[jax.Array, Steps]:
    """Samples the chain from pure noise to the final latents (Eqs. 2-5).

    Beside the current latents, memory holds only the steps that are kept, however long the chain
    is.

    Args:
      model: the networks.
      process: the chain of S steps.
      params: the denoiser's parameters.
      text: what the denoiser is conditioned on, a tree of [batch, passes, ...], from `conditions`.
      keys: PRNG keys [batch, S + 1], from `noise_keys`, for the noise that each step adds and,
        last, for x_T. Samples with a key in common have that noise in common.
      kept: int32 [batch, K], the positions in the chain of the steps that are kept of each sample,
        in the order in which they are wanted; K may be 0.
      eta: how much noise the steps add: 0 adds none (the log-probabilities are then meaningless), 1
        has DDPM's variance. One number, or float32 [batch, S] for each sample and step.
      guidance_scale: the scale of classifier-free guidance; up to 1 there is none.

    Returns:
      x_0, float32 [batch, ...], and the steps that are kept.
    """
    # A chain of second order carries its last guess of the clean latents.
    is_flow = isinstance(process, RectifiedFlow)
    flow = process if is_flow and process.extrapolation is not None else None

    def noise(index):
        draw = lambda key: jax.random.normal(key, model.latent_shape)
        return jax.vmap(draw)(keys[:, index])

    def keep(steps, index, *taken):
        def write(kept_values, values):
            chosen = (kept == index).reshape(*kept.shape, *(1,) * (values.ndim - 1))
            return jnp.where(chosen, values[:, None], kept_values)

        return jax.tree.map(write, steps, Steps(*taken))

    def step(carry, index):
        latents, steps, before = carry
        indices = jnp.full(latents.shape[0], index)
        output = guided_output(model, process, params, text, latents, indices, guidance_scale)
        of_step = eta if jnp.ndim(eta) == 0 else jnp.asarray(eta)[:, index]
        if flow is not None:
            clean = flow.clean(output, latents, process.times[indices])
            output, before = flow.second_order(output, clean, indices, before), clean
        taken = process.step(output, latents, indices, of_step)
        following = taken.mean + taken.std * noise(index)
        log_prob = taken.log_prob(following)
        return (following, keep(steps, index, latents, following, log_prob), before), None

    first = noise(process.steps)
    none = jnp.zeros((*kept.shape, *first.shape[1:]), first.dtype)
    steps = Steps(none, none, jnp.zeros(kept.shape, first.dtype))
    carry = first, steps, None if flow is None else jnp.zeros_like(first)
    (latents, steps, _), _ = jax.lax.scan(step, carry, jnp.arange(process.steps))
    return latents, steps
