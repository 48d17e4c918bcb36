"""The batches that an iteration's optimiser steps are taken on.

Axes: T tasks, B samples of each, S sampling steps, K timesteps trained on, U updates.
"""

from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp

from diffusionrl_jax.diffusion.rollout import Steps
from diffusionrl_jax.diffusion.schedule import Schedule, add_noise, training_target
from diffusionrl_jax.models.text_encoders import Text


@flax.struct.dataclass
class Updates:
    """Batches for the UNet, U in front; `text` is shared by the updates of one task.

    Attributes:
      latents: float32 [U, B, channels, height, width], the UNet's input.
      timesteps: int32 [U, B].
      target: like latents: the step that was taken, or what pretraining predicts.
      step_index: int32 [U, B], position in the chain.
      old_log_prob, advantages: float32 [U, B].
      weight: float32 [U], of the loss.
      is_pretraining: bool [U].
      task: int32 [U], which row of text.
      reference_mean: like latents: the mean of the base model's step; None without a KL to it.
    """

    latents: jax.Array
    timesteps: jax.Array
    target: jax.Array
    step_index: jax.Array
    old_log_prob: jax.Array
    advantages: jax.Array
    weight: jax.Array
    is_pretraining: jax.Array
    task: jax.Array
    reference_mean: jax.Array | None = None


def policy_updates(
    schedule: Schedule,
    steps: Steps,
    advantages: jax.Array,
    trained: jax.Array,
    weights: Sequence[float],
) -> Updates:
    """One update per task and trained timestep, one task after another (Algorithm 1).

    Args:
      schedule: of the chain.
      steps: arrays [T, B, K, ...], what was done where each sample is trained.
      advantages: float32 [T, B].
      trained: int32 [T, B, K], where in its chain every sample is trained.
      weights: of each task's loss.

    Returns:
      U = T * K updates.
    """
    tasks, batch, count = trained.shape

    def by_update(array):
        """[T, B, K, ...] as [T * K, B, ...]."""
        return jnp.moveaxis(array, 2, 1).reshape(tasks * count, batch, *array.shape[3:])

    step_index = by_update(trained)
    task = jnp.repeat(jnp.arange(tasks), count)
    return Updates(
        latents=by_update(steps.latents),
        timesteps=schedule.timesteps[step_index],
        target=by_update(steps.following),
        step_index=step_index,
        old_log_prob=by_update(steps.log_probs),
        advantages=advantages[task],
        weight=jnp.asarray(weights, jnp.float32)[task],
        is_pretraining=jnp.zeros(tasks * count, bool),
        task=task,
    )


def pretraining_update(
    schedule: Schedule,
    pictures: Mapping[str, jax.Array],
    keys: jax.Array,
    *,
    weight: float,
    text_dropout: float,
    task: int,
) -> tuple[Updates, jax.Array]:
    """The update of the pretraining loss (Eqs. 8-9), on noised pictures.

    Args:
      schedule: whose training part adds the noise.
      pictures: "latent_mean" and "latent_std" float32 [B, channels, height, width].
      keys: PRNG keys [B].
      weight: of the loss.
      text_dropout: the probability that the empty prompt is drawn in place of a picture's own; 0
        where the loss has its expectation.
      task: its row of text.

    Returns:
      U = 1 update, and bool [B]: which pictures lose their text to the empty prompt.
    """
    mean, std = pictures["latent_mean"], pictures["latent_std"]

    @jax.vmap
    def draw(key):
        keys = jax.random.split(key, 4)
        return (
            jax.random.normal(keys[0], mean.shape[1:]),
            jax.random.normal(keys[1], mean.shape[1:]),
            jax.random.randint(keys[2], (), 0, len(schedule.training_alpha_bar)),
            jax.random.bernoulli(keys[3], text_dropout),
        )

    encoding_noise, noise, timesteps, dropped = draw(keys)
    clean = mean + std * encoding_noise
    zeros = jnp.zeros((1, len(mean)))
    update = Updates(
        latents=add_noise(schedule, clean, noise, timesteps)[None],
        timesteps=timesteps[None],
        target=training_target(schedule, clean, noise, timesteps)[None],
        step_index=zeros.astype(jnp.int32),
        old_log_prob=zeros,
        advantages=zeros,
        weight=jnp.full(1, weight),
        is_pretraining=jnp.ones(1, bool),
        task=jnp.full(1, task),
    )
    return update, dropped


def drop_text(text: Text, empty: Text, dropped: jax.Array) -> Text:
    """The text [B, ...], but the empty prompt's [1, ...] where `dropped`, bool [B], says so."""
    choose = jax.vmap(jnp.where, in_axes=(0, None, 0))
    return jax.tree.map(lambda own, empty: choose(dropped, empty[0], own), text, empty)
