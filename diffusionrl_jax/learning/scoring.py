"""Decodes the samples that an iteration learns from, and scores their images.

Axes: T tasks, B samples of each.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffusionrl_jax.distributed.mesh import gather_parameters
from diffusionrl_jax.distributed.microbatch import (
    largest_divisor,
    map_microbatches,
    microbatch_count,
)
from diffusionrl_jax.learning.iteration import Frozen, Samples
from diffusionrl_jax.learning.sampling import Sampling
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_to_image import TextToImage
from diffusionrl_jax.rewards import Reward
from diffusionrl_jax.rewards.host_reward import host_rewards
from diffusionrl_jax.rewards.scoring import score


@dataclasses.dataclass(frozen=True, eq=False)
class Scoring:
    """Decodes and scores an iteration's samples. Its methods are pure functions.

    Attributes:
      model: the networks that decode latents.
      rewards: the rewards, one per task.
      sampling: the numbers that say how many samples are decoded and scored at a time.
      mesh: the devices over which batches are split.
    """

    model: TextToImage
    rewards: tuple[Reward, ...]
    sampling: Sampling
    mesh: Mesh

    def decode(self, frozen: Frozen, latents: jax.Array) -> jax.Array:
        """Decodes latents [n, ...] to images float32 [n, height, width, 3] in [0, 1]."""
        vae = gather_parameters(frozen.vae, self.mesh)
        decode = lambda latents: self.model.decode(vae, latents)
        return self._map(decode, latents, len(latents), self.sampling.decode)

    def decodes_to_score(self, batch: int) -> bool:
        """Returns whether images are decoded only where they are scored, a microbatch at a time.

        No image is then kept. It is so where scoring takes several microbatches, unless there are
        scorers on the host, which are handed all images of an iteration.

        Args:
          batch: B, the number of samples of each task.
        """
        in_parts = microbatch_count(batch, self.sampling.score, self.mesh.size) > 1
        return in_parts and not any(map(host_rewards, self.rewards))

    def score(self, frozen: Frozen, samples: Samples, reward_inputs: tuple) -> jax.Array:
        """Computes each task's reward for its own images.

        Args:
          frozen: the parameters that are not trained, of which those of the reward models are used,
            and those of the VAE where images are not kept.
          samples: the samples with their images, or with the latents that these are decoded from.
          reward_inputs: what each reward takes besides the images: one tree per task.

        Returns:
          float32 [T, B]; NaN where a picture is not finite, see `rewards.scoring.score`.
        """
        if samples.text is None:
            return jnp.zeros((len(self.rewards), 0))
        scores = []
        for task, params in enumerate(frozen.rewards):
            inputs = reward_inputs[task]
            if samples.images is None:
                assert samples.latents is not None  # Images or latents are held.
                latents = samples.latents[task]
                scores.append(self.score_latents(task, params, frozen.vae, latents, inputs))
            else:
                scores.append(self.score_task(task, params, samples.images[task], inputs))
        return jnp.stack(scores).astype(jnp.float32)

    def score_latents(
        self, task: int, params: Parameters, vae: Parameters, latents: jax.Array, inputs: Mapping
    ) -> jax.Array:
        """Decodes a task's latents and scores the images, a microbatch at a time.

        Args:
          task: the task's number, which says whose reward is computed.
          params: the reward model's parameters.
          vae: the VAE's parameters.
          latents: float32 [B, ...].
          inputs: what the reward takes besides the images, arrays [B, ...].

        Returns:
          float32 [B].
        """
        params, vae = gather_parameters(params, self.mesh), gather_parameters(vae, self.mesh)
        numbers = self.sampling

        def of_part(part):
            latents, inputs = part
            share = len(latents) // self.mesh.size
            at_once = largest_divisor(share, min(numbers.decode, share) or share)
            decode = lambda latents: self.model.decode(vae, latents)
            images = map_microbatches(decode, latents, share // at_once, self.mesh)
            return score(self.rewards[task], params, images, inputs)

        return self._map(of_part, (latents, inputs), len(latents), numbers.score)

    def reward_gradient(
        self, task: int, frozen: Frozen, latents: jax.Array, inputs: Mapping
    ) -> tuple[jax.Array, jax.Array]:
        """Decodes latents, scores their images, and differentiates the scores by the latents.

        Shipped rewards with a gradient compare no images; for one of the user's own, that may,
        `experiments/checks.py` asks for whole groups in a microbatch.

        Args:
          task: the number of the task whose reward scores.
          frozen: the parameters that do not change.
          latents: float32 [B, ...].
          inputs: what the reward needs of the prompts.

        Returns:
          The scores, float32 [B], and the gradient of their sum, of the latents' shape.
        """
        params = gather_parameters(frozen.rewards[task], self.mesh)
        vae = gather_parameters(frozen.vae, self.mesh)

        def of_part(part):
            latents, inputs = part
            of_latents = lambda latents: score(
                self.rewards[task], params, self.model.decode(vae, latents), inputs
            )
            scores, pull = jax.vjp(of_latents, latents)
            return scores, pull(jnp.ones_like(scores))[0]

        at_once = self.sampling.differentiate
        return self._map(of_part, (latents, inputs), len(latents), at_once)

    def score_task(
        self, task: int, params: Parameters, images: jax.Array, inputs: Mapping
    ) -> jax.Array:
        """Computes one task's reward, [B], for images [B, height, width, 3].

        The arguments are as in `score_latents`.
        """
        params = gather_parameters(params, self.mesh)
        of_part = lambda part: score(self.rewards[task], params, *part)
        return self._map(of_part, (images, inputs), len(images), self.sampling.score)

    def _map(self, function, tree, count: int, per_device: int):
        """Applies a function to `count` samples, `per_device` at a time on each device."""
        count = microbatch_count(count, per_device, self.mesh.size)
        return map_microbatches(function, tree, count, self.mesh)
