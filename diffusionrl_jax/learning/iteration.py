"""What an iteration is given, and what it draws. The axes are those of `experience.py`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from diffusionrl_jax.diffusion.rollout import Steps
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_to_image import Text
from diffusionrl_jax.rewards.host_reward import Questions


@flax.struct.dataclass
class Frozen:
    """The parameters that training does not change.

    Attributes:
      text_encoder: the parameters of the model's text encoder.
      vae: the parameters of the model's VAE.
      rewards: the parameters of the reward models, one tree per task.
      empty_ids: the tokens of the empty prompt, int32 [tokens].
      base: the parameters of the denoiser that training started from, which LoRA's factors change
        and near which a policy may be kept; None where nothing needs them.
    """

    text_encoder: Parameters
    vae: Parameters
    rewards: tuple[Parameters, ...]
    empty_ids: jax.Array
    base: Parameters | None = None


@flax.struct.dataclass
class Batch:
    """What an iteration is given by the host.

    Attributes:
      input_ids: the prompts' tokens, int32 [T, B, tokens].
      reward_inputs: what each reward takes besides the images: one tree of [B, ...] arrays per
        task, from its `prepare`.
      pretraining: the pictures of the pretraining loss, or None without it: "latent_mean" and
        "latent_std", float32 [B, ...]; "input_ids", int32 [B, tokens]; and, where the texts were
        encoded in advance, the arrays of `text_encoders.text_to_arrays`.
      prompt_places: for each task, the place of each sample's prompt among the task's prompts,
        int32 [B], or None if the task's rewards are not normalised by prompt; empty if no task's
        are.
      pairs: the pictures of a method that learns from pairs, as those of the pretraining loss; of
        two neighbours the first was chosen. None for other methods.
      questions: for each task, what its scorers on the host are told. It stays on the host.
    """

    input_ids: jax.Array
    reward_inputs: tuple[Any, ...]
    pretraining: Mapping[str, jax.Array] | None
    prompt_places: tuple[jax.Array | None, ...] = ()
    pairs: Mapping[str, jax.Array] | None = None
    questions: tuple[Questions, ...] = flax.struct.field(pytree_node=False, default=())


@flax.struct.dataclass
class Samples:
    """What an iteration has drawn.

    Attributes:
      steps: the steps that are trained on, arrays [T, B, K, ...]; None where nothing is drawn.
      images: float32 [T, B, height, width, 3] in [0, 1]; None once they are scored, and where they
        are decoded only to be scored.
      text: what the denoiser was conditioned on, a tree of [T, B, P, ...]; None where nothing is
        drawn.
      latents: where the chains ended, float32 [T, B, ...]; None where nothing needs them.
      keeps_latents: whether the final latents are trained on.
    """

    steps: Steps | None
    images: jax.Array | None
    text: Text | None
    latents: jax.Array | None = None
    keeps_latents: bool = flax.struct.field(pytree_node=False, default=False)

    def finite(self) -> "Samples":
        """Returns the samples with 0 in place of every latent that is not a finite number.

        Such samples have no reward, and so no share in the loss; but 0 times NaN is NaN, and would
        poison the gradient of all. So would a step that led to no finite number, which the denoiser
        would be asked for again: it is as if taken from 0. Log-probabilities stay as they are.
        """
        steps = self.steps
        if steps is not None:
            elements = steps.latents.ndim - 3
            led = jnp.isfinite(steps.following).all(axis=tuple(range(-elements, 0)))
            if led.ndim > 3:  # Chains that part at a step are taken from it as one.
                led = led.all(axis=3)
            led = led.reshape(*led.shape, *[1] * elements)
            steps = dataclasses.replace(
                steps,
                latents=_finite(jnp.where(led, steps.latents, 0)),
                following=_finite(steps.following),
            )
        latents = None if self.latents is None else _finite(self.latents)
        return dataclasses.replace(self, steps=steps, latents=latents)

    def trained_on(self) -> "Samples":
        """Returns what is still held once the samples are scored.

        Images are dropped, and so are the final latents unless they are trained on.
        """
        return dataclasses.replace(
            self, images=None, latents=self.latents if self.keeps_latents else None
        )


def _finite(array: jax.Array) -> jax.Array:
    return jnp.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)
