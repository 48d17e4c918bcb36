"""What an iteration learns from: chains drawn with the current parameters, decoded and scored.

Axes: T tasks, B samples of each, S sampling steps, K steps trained on, P passes of the denoiser for
a sample (2 with guidance: the prompt, and the empty prompt).
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffusionrl_jax.diffusion.guidance import conditions
from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.diffusion.rollout import Steps, rollout
from diffusionrl_jax.distributed.mesh import gather_parameters
from diffusionrl_jax.distributed.microbatch import (
    largest_divisor,
    map_microbatches,
    microbatch_count,
)
from diffusionrl_jax.learning import draws
from diffusionrl_jax.learning.adaptation import Adaptation
from diffusionrl_jax.learning.iteration import Frozen, Samples
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_to_image import Text, TextToImage
from diffusionrl_jax.rewards import Reward
from diffusionrl_jax.rewards.host_reward import host_rewards
from diffusionrl_jax.rewards.scoring import score


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the samples of an iteration are drawn; see `experiments/config.py`.

    Attributes:
      seed: of the run.
      eta: of the chain.
      guidance_scale: of the chain.
      steps_kept: K, of how many steps of each chain what was done there is kept.
      sample: samples drawn per device at a time; 0 is all at once.
      decode: the same of those decoded.
      score: the same of those scored.
      noise_groups: of each task, how many neighbours in the batch are trained on the same steps and
        share all noise but that of those; 1 is none. Empty means none for all tasks.
      keeps_latents: whether the final latents are trained on, too.
      from_base: whether the model that training started from draws, whatever has been learned.
    """

    seed: int
    eta: float
    guidance_scale: float
    steps_kept: int
    sample: int = 0
    decode: int = 0
    score: int = 0
    noise_groups: tuple[int, ...] = ()
    keeps_latents: bool = False
    from_base: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Experience:
    """Draws, decodes and scores; its methods are pure functions.

    Attributes:
      model: what samples are drawn with.
      process: the chain that they are drawn by.
      adaptation: which of the denoiser's parameters are trained.
      rewards: one per task.
      sampling: numbers.
      mesh: over which batches are sharded.

    Raises:
      UserError: fewer steps have noise than are to be kept.
    """

    model: TextToImage
    process: Process
    adaptation: Adaptation
    rewards: tuple[Reward, ...]
    sampling: Sampling
    mesh: Mesh

    def __post_init__(self):
        count, steps = self.sampling.steps_kept, self.process.stochastic_steps
        if not 0 <= count <= steps:
            raise UserError(
                f"timesteps_per_iteration={count} must be between 0 and {steps}: of the "
                f"{self.process.steps} sampling steps, that many have noise."
            )

    def trained_steps(self, step: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """Which sample each one shares noise with, and the steps [T, B, K] it is trained on."""
        numbers = self.sampling
        firsts = draws.first_of_group(numbers.noise_groups or (1,) * len(self.rewards), batch)
        trained = draws.trained_steps(
            numbers.seed, step, firsts, self.process.stochastic_steps, numbers.steps_kept
        )
        return firsts, trained

    def _map(self, function, tree, count: int, per_device: int):
        count = microbatch_count(count, per_device, self.mesh.size)
        return map_microbatches(function, tree, count, self.mesh)

    def draw(
        self, params: Parameters, frozen: Frozen, input_ids: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Steps, Text]:
        """Draws every task's latents with the current parameters.

        Which steps a sample is trained on is known before it is drawn: no others are kept.

        Args:
          params, frozen: those that are trained, and those that are not.
          input_ids: int32 [T, B, tokens].
          step: int32 scalar, the iteration.

        Returns:
          The final latents, the steps that are trained on, and the text; their first axis is B * T.
        """
        numbers = self.sampling
        current = self.adaptation.denoiser(params, frozen.base)
        drawing = frozen.base if numbers.from_base else current
        denoiser = gather_parameters(drawing, self.mesh, self.model.dtype)
        text_encoder = gather_parameters(frozen.text_encoder, self.mesh)
        tasks, batch, _ = input_ids.shape
        # Sample-major, so that the merged axis keeps the batch axis' sharding.
        flatten = lambda x: x.swapaxes(0, 1).reshape(batch * tasks, *x.shape[2:])
        firsts, trained = self.trained_steps(step, batch)
        sources = draws.noise_sources(firsts, trained, self.process.steps)
        empty = self.model.encode_empty(text_encoder, frozen.empty_ids[None])

        def chain(arguments):
            ids, sources, kept = arguments
            prompts = self.model.encode_text(text_encoder, ids)
            text = conditions(prompts, empty, numbers.guidance_scale)
            latents, steps = rollout(
                self.model,
                self.process,
                denoiser,
                text,
                draws.noise_keys(numbers.seed, step, sources),
                kept,
                eta=numbers.eta,
                guidance_scale=numbers.guidance_scale,
            )
            return latents, steps, text

        arguments = (flatten(input_ids), flatten(sources), flatten(trained))
        return self._map(chain, arguments, tasks * batch, numbers.sample)

    def decode(self, frozen: Frozen, latents: jax.Array) -> jax.Array:
        """Images float32 [n, height, width, 3] in [0, 1] of latents [n, ...]."""
        vae = gather_parameters(frozen.vae, self.mesh)
        decode = lambda latents: self.model.decode(vae, latents)
        return self._map(decode, latents, len(latents), self.sampling.decode)

    def decodes_to_score(self, batch: int) -> bool:
        """Whether no image is kept: a microbatch of them is decoded where it is scored.

        Scorers on the host are handed all images of an iteration.
        """
        in_parts = microbatch_count(batch, self.sampling.score, self.mesh.size) > 1
        return in_parts and not any(map(host_rewards, self.rewards))

    def sample(
        self, params: Parameters, frozen: Frozen, input_ids: jax.Array, step: jax.Array
    ) -> Samples:
        """Draws every task's images, or what they are decoded from; arguments as in `draw`."""
        tasks, batch, _ = input_ids.shape
        latents, steps, text = self.draw(params, frozen, input_ids, step)
        later, keeps = self.decodes_to_score(batch), self.sampling.keeps_latents
        images = None if later else self.decode(frozen, latents)
        samples = Samples(steps, images, text, latents if later or keeps else None, keeps)
        unflatten = lambda x: x.reshape(batch, tasks, *x.shape[1:]).swapaxes(0, 1)
        return jax.tree.map(unflatten, samples)

    def score(self, frozen: Frozen, samples: Samples, reward_inputs: tuple) -> jax.Array:
        """Each task's reward on its own images.

        Args:
          frozen: the parameters of the reward models, and of the VAE where images are not kept.
          samples: with images, or latents.
          reward_inputs: one tree per task.

        Returns:
          float32 [T, B]; NaN where a picture is not finite, see `rewards.scoring.score`.
        """
        scores = []
        for task, params in enumerate(frozen.rewards):
            inputs = reward_inputs[task]
            if samples.images is None:
                assert samples.latents is not None  # Either is held.
                latents = samples.latents[task]
                scores.append(self.score_latents(task, params, frozen.vae, latents, inputs))
            else:
                scores.append(self.score_task(task, params, samples.images[task], inputs))
        return jnp.stack(scores).astype(jnp.float32)

    def score_latents(
        self, task: int, params: Parameters, vae: Parameters, latents: jax.Array, inputs: Mapping
    ) -> jax.Array:
        """As `score_task`, of images [B, ...] that are decoded a microbatch at a time.

        Args:
          task: whose reward.
          params, vae: the reward model's parameters and the VAE's.
          latents: float32 [B, ...].
          inputs: of the reward.

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

    def score_task(
        self, task: int, params: Parameters, images: jax.Array, inputs: Mapping
    ) -> jax.Array:
        """One task's reward [B] on images [B, height, width, 3]; arguments as in `score`."""
        params = gather_parameters(params, self.mesh)
        of_part = lambda part: score(self.rewards[task], params, *part)
        return self._map(of_part, (images, inputs), len(images), self.sampling.score)
