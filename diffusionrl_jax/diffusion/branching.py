"""Samples the chains of groups that part at one step: what they have in common is drawn once."""

import jax
import jax.numpy as jnp

from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.diffusion.rollout import Steps, guided_output
from diffusionrl_jax.distributed.loops import loop
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_to_image import Text, TextToImage


def steps_together(process: Process) -> float:
    """Returns how many steps of its chain a group takes together, on average.

    It parts at any step that has noise, with the same probability.
    """
    return (process.stochastic_steps + 1) / 2


def branch(
    model: TextToImage,
    process: Process,
    params: Parameters,
    text: Text,
    keys: jax.Array,
    own: jax.Array,
    index: jax.Array,
    *,
    eta: float,
    guidance_scale: float,
) -> tuple[jax.Array, Steps]:
    """Samples groups of G chains that have all noise in common but that of one step.

    Up to that step, and at it, the denoiser sees each group once; after it, each sample. The chains
    are those of `rollout` with the same noise.

    Args:
      model, process, params, eta, guidance_scale: as in `rollout`.
      text: what the denoiser is conditioned on, a tree of [groups, passes, ...].
      keys: PRNG keys [groups, S + 1], for the noise that a group's chains have in common.
      own: PRNG keys [groups, G], for the noise that each sample has at the step where they part.
      index: the position of that step in the chain, int32 scalar, which is the same for all groups.

    Returns:
      x_0, float32 [groups, G, ...], and the step where the chains part: `latents` [groups, 1, ...],
      of the group; `following` [groups, 1, G, ...] and `log_probs` [groups, 1, G], of each sample.
    """
    groups, size = own.shape
    draw = lambda key: jax.random.normal(key, model.latent_shape)
    each = lambda array: jnp.repeat(array, size, axis=0)

    def at(text, latents, place):
        indices = jnp.full(len(latents), place)
        output = guided_output(model, process, params, text, latents, indices, guidance_scale)
        return output, process.step(output, latents, indices, eta)

    def together(place, carry):
        latents = carry[0]
        output, taken = at(text, latents, place)
        return taken.mean + taken.std * jax.vmap(draw)(keys[:, place]), latents, output

    text_of_each = jax.tree.map(each, text)

    def apart(place, latents):
        _, taken = at(text_of_each, latents, place)
        return taken.mean + taken.std * each(jax.vmap(draw)(keys[:, place]))

    first = jax.vmap(draw)(keys[:, process.steps])
    average = steps_together(process)
    _, latents, output = loop(0, index + 1, together, (first, first, first), average)
    taken = process.step(output, latents, jnp.full(groups, index), eta)
    taken = jax.tree.map(each, taken)
    following = taken.mean + taken.std * jax.vmap(draw)(own.reshape(-1))
    log_probs = taken.log_prob(following)
    last = loop(index + 1, process.steps, apart, following, process.steps - average)
    by_group = lambda array: array.reshape(groups, size, *array.shape[1:])
    steps = Steps(latents[:, None], by_group(following)[:, None], by_group(log_probs)[:, None])
    return by_group(last), steps
