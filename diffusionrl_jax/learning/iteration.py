"""What an iteration is told, takes and draws; the axes are those of `policy_gradient.py`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax

from diffusionrl_jax.diffusion.rollout import Steps
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_encoders import Text
from diffusionrl_jax.rewards.host_reward import Questions


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """The numbers of an iteration; see `configs/common.py` for what each means.

    The microbatches are samples per device; 0 is all at once.
    """

    seed: int
    eta: float
    guidance_scale: float
    timesteps_per_iteration: int
    balance_timesteps: bool
    clip_range: float
    advantage_clip: float
    kl_weight: float
    pretraining_weight: float
    text_dropout: float
    ema_decay: float
    sample_microbatch: int
    decode_microbatch: int
    score_microbatch: int
    update_microbatch: int

    @property
    def passes(self) -> int:
        """How often the UNet sees a sample: with and, if guided, without its text."""
        return 1 if self.guidance_scale == 1 else 2


@flax.struct.dataclass
class Frozen:
    """Parameters that training does not change.

    Attributes:
      text_encoder, vae: of the model.
      rewards: one tree per task.
      empty_ids: int32 [tokens], the empty prompt.
      unet: the base model's, which LoRA's factors change, and which the policy is kept near; None
        if all of the UNet is trained, with a `kl_weight` of 0.
    """

    text_encoder: Parameters
    vae: Parameters
    rewards: tuple[Parameters, ...]
    empty_ids: jax.Array
    unet: Parameters | None = None


@flax.struct.dataclass
class Batch:
    """What an iteration takes from the host.

    Attributes:
      input_ids: int32 [T, B, tokens].
      reward_inputs: one tree of [B, ...] arrays per task, from its reward's `prepare`.
      pretraining: "latent_mean" and "latent_std" float32 [B, channels, height, width]; where the
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
    """Attributes:
    steps: arrays [T, B, K, ...], those that are trained on.
    images: float32 [T, B, height, width, 3] in [0, 1]; None once they are scored.
    text: [T, B, P, tokens, width], what the UNet was conditioned on; of XL a tree [T, B, P, ...].
    latents: float32 [T, B, channels, height, width], where the chains end, of images that are
      decoded only where they are scored; else None.
    """

    steps: Steps
    images: jax.Array | None
    text: Text
    latents: jax.Array | None = None
