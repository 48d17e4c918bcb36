"""What an iteration is told, takes and draws; the axes are those of `experience.py`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax

from diffusionrl_jax.diffusion.rollout import Steps
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_to_image import Text
from diffusionrl_jax.rewards.host_reward import Questions


@flax.struct.dataclass
class Frozen:
    """Parameters that training does not change.

    Attributes:
      text_encoder: of the model.
      vae: of the model.
      rewards: one tree per task.
      empty_ids: int32 [tokens], the empty prompt.
      base: the denoiser's that training started from, which LoRA's factors change and which a
        policy is kept near; None where nothing takes it.
    """

    text_encoder: Parameters
    vae: Parameters
    rewards: tuple[Parameters, ...]
    empty_ids: jax.Array
    base: Parameters | None = None


@flax.struct.dataclass
class Batch:
    """What an iteration takes from the host.

    Attributes:
      input_ids: int32 [T, B, tokens].
      reward_inputs: one tree of [B, ...] arrays per task, from its reward's `prepare`.
      pretraining: "latent_mean" and "latent_std" float32 [B, ...]; where the
        texts were encoded in advance, what `text_encoders.text_to_arrays` makes of that; and
        "input_ids" int32 [B, tokens]; None without the pretraining loss.
      prompt_places: of each task, int32 [B], which of its prompts each sample is of, or None if its
        rewards are not normalised by prompt; empty if no task's are.
      questions: of each task, what its scorers on the host are told; stays on the host.
    """

    input_ids: jax.Array
    reward_inputs: tuple[Any, ...]
    pretraining: Mapping[str, jax.Array] | None
    prompt_places: tuple[jax.Array | None, ...] = ()
    questions: tuple[Questions, ...] = flax.struct.field(pytree_node=False, default=())


@flax.struct.dataclass
class Samples:
    """What was drawn.

    Attributes:
      steps: arrays [T, B, K, ...], those that are trained on.
      images: float32 [T, B, height, width, 3] in [0, 1]; None once they are scored.
      text: a tree of [T, B, P, ...], what the denoiser was conditioned on.
      latents: float32 [T, B, ...], where the chains end; None where nothing takes them.
      keeps_latents: whether they are trained on.
    """

    steps: Steps
    images: jax.Array | None
    text: Text
    latents: jax.Array | None = None
    keeps_latents: bool = flax.struct.field(pytree_node=False, default=False)

    def trained_on(self) -> "Samples":
        """What is held once they are scored: no image, and latents only if they are trained on."""
        return dataclasses.replace(
            self, images=None, latents=self.latents if self.keeps_latents else None
        )
