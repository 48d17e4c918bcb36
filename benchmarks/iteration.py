"""The work that is compared, and this project's side of it."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.distributed.mesh import batch_sharding, make_mesh, parameter_sharding
from diffusionrl_jax.emoji_world import emoji_model
from diffusionrl_jax.experiments.algorithm import initial_state, make_algorithm
from diffusionrl_jax.experiments.config import get_config
from diffusionrl_jax.experiments.tasks import make_scorer, make_task
from diffusionrl_jax.learning.execution import make_train_step
from diffusionrl_jax.learning.iteration import Batch, Frozen
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.stable_diffusion.model import StableDiffusion
from diffusionrl_jax.monitoring.progress import PhaseTimer

# Of both sides; they do not change the work.
LEARNING_RATE, CLIP_RANGE, ADVANTAGE_CLIP, GRADIENT_CLIP = 1e-5, 1e-4, 10.0, 1.0


@dataclasses.dataclass(frozen=True)
class Work:
    """What an iteration computes: guided sampling with eta 1, then K optimiser steps.

    Attributes:
      images: sampled, and trained on.
      steps: of sampling.
      train_timesteps: K, of each image.
      guidance_scale: of sampling and training; the UNet runs twice for a sample.
    """

    images: int
    steps: int
    train_timesteps: int
    guidance_scale: float

    def __post_init__(self):
        if self.guidance_scale <= 1:
            raise ValueError("TRL always guides: guidance_scale must not be 1 or less.")

    @property
    def counts(self) -> dict[str, int]:
        """Optimiser steps, and samples through the UNet without and with gradients."""
        return {
            "optimizer_steps": self.train_timesteps,
            "forward": 2 * self.images * self.steps,
            "trained": 2 * self.images * self.train_timesteps,
        }

    def rival_settings(
        self, model: str, prompts: Sequence[str], sample_batch: int, train_batch: int, threads: int
    ) -> dict[str, Any]:
        """What `trl_ddpo.py` takes. TRL steps once for all K timesteps of its training batches.

        Raises:
          ValueError: if the batches do not make K optimiser steps of the same size.
        """
        unit = train_batch * self.train_timesteps
        if self.images % unit or self.images % sample_batch or sample_batch % train_batch:
            raise ValueError(
                f"{self.images} images must be a multiple of {unit} (training batch x timesteps) "
                f"and of the sampling batch {sample_batch}, itself a multiple of {train_batch}."
            )
        return dataclasses.asdict(self) | {
            "model": model,
            "prompts": list(prompts),
            "sample_batch": sample_batch,
            "train_batch": train_batch,
            "accumulation": self.images // unit,
            "threads": threads,
            "learning_rate": LEARNING_RATE,
            "clip_range": CLIP_RANGE,
            "advantage_clip": ADVANTAGE_CLIP,
            "gradient_clip": GRADIENT_CLIP,
            "group_size": 1,
            "exchange": None,
        }


@dataclasses.dataclass(frozen=True)
class Brightness:
    """The mean of all pixels: a reward that costs nothing. See `rewards.Reward`."""

    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Nothing is needed of the prompts."""
        return {}

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Float32 [n] of images [n, height, width, 3]."""
        return images.mean((1, 2, 3))


class Ours:
    """This project's iterations.

    Args:
      model, params: the policy.
      work: of each iteration.
      prompts: one per image.
      devices: over which the batch is split.
      sample_microbatch, update_microbatch: samples per device; 0 is all at once.
    """

    def __init__(
        self,
        model: StableDiffusion,
        params: Mapping[str, Parameters],
        work: Work,
        prompts: Sequence[str],
        devices: list[jax.Device],
        sample_microbatch: int = 0,
        update_microbatch: int = 0,
    ):
        config = get_config()
        config.algorithm.policy_gradient.update(
            timesteps_per_iteration=work.train_timesteps, clip_range=CLIP_RANGE
        )
        config.advantage_clip, config.pretraining.weight = ADVANTAGE_CLIP, 0.0
        config.sampler.update(steps=work.steps, guidance_scale=work.guidance_scale)
        config.optimizer.update(
            learning_rate=LEARNING_RATE, weight_decay=1e-4, gradient_clip=GRADIENT_CLIP
        )
        config.microbatch.update(sample=sample_microbatch, train=update_microbatch)
        config.tasks.brightness = make_task(make_scorer("brightness"), "")
        mesh = make_mesh(devices=devices)
        algorithm = make_algorithm(config, model, mesh, (Brightness(),))
        place = lambda tree: jax.device_put(tree, parameter_sharding(mesh, tree))
        self._state = place(initial_state(config, params[model.denoiser_name]))
        self._frozen = place(
            Frozen(
                text_encoder=params["text_encoder"],
                vae=params["vae"],
                rewards=({},),
                empty_ids=jnp.asarray(model.tokenize([""])[0]),
            )
        )
        self._batch = jax.device_put(
            Batch(input_ids=model.tokenize(prompts)[None], reward_inputs=({},), pretraining=None),
            batch_sharding(mesh, axis=1),
        )
        self._timer = PhaseTimer()
        self._step = make_train_step(algorithm, self._state, "split", self._timer)

    def iterate(self) -> dict[str, float]:
        """Runs an iteration.

        Returns:
          Seconds of "sampling", "training" and the whole "iteration", the "optimizer_steps"
          done, and the mean "reward".
        """
        start = time.perf_counter()
        self._state, metrics = self._step(self._state, self._frozen, self._batch)
        seconds = time.perf_counter() - start
        phases = self._timer.collect()
        return {
            "sampling": phases["seconds/sample"],
            "training": phases["seconds/update"],
            "iteration": seconds,
            "optimizer_steps": metrics["gradient_norm"].shape[0],
            "reward": float(metrics["reward_mean"][0]),
        }


def emoji_prompts(count: int) -> list[str]:
    """As many prompts of the emoji world, in turn."""
    prompts = emoji_model.world_prompts()
    return [prompts[index % len(prompts)] for index in range(count)]
