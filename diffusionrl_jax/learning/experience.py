"""Draws the samples that an iteration learns from.

Axes: T tasks, B samples of each, S sampling steps, K steps trained on, P passes of the denoiser for
a sample (2 with guidance: the prompt, and the empty prompt).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffusionrl_jax.diffusion.branching import branch, steps_together
from diffusionrl_jax.diffusion.guidance import conditions
from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.diffusion.rollout import Steps, rollout
from diffusionrl_jax.distributed.microbatch import map_microbatches, microbatch_count
from diffusionrl_jax.distributed.shards import apply_by_device, gathered
from diffusionrl_jax.learning import draws
from diffusionrl_jax.learning.adaptation import Adaptation
from diffusionrl_jax.learning.branching import map_groups
from diffusionrl_jax.learning.iteration import Frozen, Samples
from diffusionrl_jax.learning.sampling import Sampling
from diffusionrl_jax.learning.scoring import Scoring
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_to_image import Text, TextToImage
from diffusionrl_jax.rewards import Reward


def samples_first(array: jax.Array) -> jax.Array:
    """Joins the axes of tasks and samples: [T, B, ...] becomes [B * T, ...].

    Samples come first, so that the joined axis keeps the batch axis' sharding.
    """
    # The size is not left to be inferred: samples of which no step is kept are empty arrays.
    samples = array.shape[0] * array.shape[1]
    return array.swapaxes(0, 1).reshape(samples, *array.shape[2:])


@dataclasses.dataclass(frozen=True, eq=False)
class Experience:
    """Draws an iteration's samples, and knows how they are scored. Its methods are pure functions.

    Attributes:
      model: the networks that samples are drawn with.
      process: the chain that they are drawn by.
      adaptation: which of the denoiser's parameters are trained.
      rewards: the rewards, one per task.
      sampling: the numbers by which samples are drawn.
      mesh: the devices over which batches are split.

    Raises:
      UserError: more steps are to be kept than add noise, or than a window has.
    """

    model: TextToImage
    process: Process
    adaptation: Adaptation
    rewards: tuple[Reward, ...]
    sampling: Sampling
    mesh: Mesh

    def __post_init__(self):
        count, late = self.sampling.steps_kept, self.sampling.late_steps
        assert not late or count <= late <= self.process.steps  # Methods have looked at it.
        if late:
            return
        steps = self.process.stochastic_steps
        if not 0 <= count <= steps:
            raise UserError(
                f"timesteps_per_iteration={count} must be between 0 and {steps}: of the "
                f"{self.process.steps} sampling steps, that many have noise."
            )
        if (window := self.sampling.window) and not count <= window <= steps:
            raise UserError(
                f"config.sampler.window={window} must be between timesteps_per_iteration={count} "
                f"and {steps}: of the {self.process.steps} sampling steps, that many have noise. 0 "
                "has it at all of them."
            )

    @property
    def scoring(self) -> Scoring:
        """What decodes and scores the samples."""
        return Scoring(self.model, self.rewards, self.sampling, self.mesh)

    def trained_steps(self, step: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """Draws the steps that each sample of an iteration is trained on.

        Args:
          step: the iteration's number, int32 scalar.
          batch: B, the number of samples of each task.

        Returns:
          The first sample of each one's noise group, int32 [T, B], from `draws.first_of_group`, and
          the trained steps, int32 [T, B, K], from `draws.trained_steps` or `branch_steps`.
        """
        numbers = self.sampling
        firsts = draws.first_of_group(numbers.noise_groups or (1,) * len(self.rewards), batch)
        if numbers.branches:
            of_parts = self.branch_steps(step)
            part = jnp.arange(batch) // self.group % numbers.branches
            return firsts, of_parts[:, part][..., None]
        arguments = numbers.seed, step, firsts
        if late := numbers.late_steps:
            last = self.process.steps
            chosen = draws.trained_steps(*arguments, last, numbers.steps_kept, last - late)
            return firsts, jnp.sort(chosen, axis=2)
        candidates = numbers.window or self.process.stochastic_steps
        trained = draws.trained_steps(*arguments, candidates, numbers.steps_kept)
        if numbers.window:
            trained += self.windows(step, batch)[..., None]
        return firsts, trained

    @property
    def group(self) -> int:
        """How many samples share each row that is trained on: 1 unless groups branch."""
        return self.sampling.noise_groups[0] if self.sampling.branches else 1

    @property
    def evaluations(self) -> float:
        """How often the denoiser runs for each sample that is drawn, on average, not guided."""
        together = steps_together(self.process) * (1 - 1 / self.group)
        return self.process.steps - together

    def branch_steps(self, step: jax.Array) -> jax.Array:
        """Draws the step at which groups branch, int32 [T, parts]; see `draws.branch_steps`.

        Of a task's groups, one after another, each belongs to the next part in turn. So every
        device has as many of each, and which step a sample is trained on depends on no division.

        Args:
          step: the iteration's number, int32 scalar.
        """
        numbers = self.sampling
        tasks, steps = len(self.rewards), self.process.stochastic_steps
        return draws.branch_steps(numbers.seed, step, tasks, numbers.branches, steps)

    def noise_of_steps(self, step: jax.Array, firsts: jax.Array, trained: jax.Array) -> jax.Array:
        """Draws the noise of steps once more, which is cheaper than to keep it.

        Args:
          step: the iteration's number, int32 scalar.
          firsts, trained: from `trained_steps`.

        Returns:
          The standard normal numbers that the steps added, float32 [T, B, K, ...].
        """
        sources = draws.noise_sources(firsts, trained, self.process.steps)
        shape = self.model.latent_shape
        of_step = lambda keys, place: jax.random.normal(keys[place], shape)
        of_sample = jax.vmap(of_step, (None, 0))

        def of_task(sources, trained):
            keys = draws.noise_keys(self.sampling.seed, step, sources)
            return jax.vmap(of_sample)(keys, trained)

        return jax.vmap(of_task)(sources, trained)

    def windows(self, step: jax.Array, batch: int) -> jax.Array:
        """Draws the first step of each sample's window, int32 [T, B]; see `draws.windows`.

        The arguments are those of `trained_steps`.
        """
        numbers = self.sampling
        groups = draws.first_of_group(numbers.window_groups, batch)
        steps = self.process.stochastic_steps
        return draws.windows(numbers.seed, step, groups, steps, numbers.window)

    def eta(self, step: jax.Array, batch: int) -> float | jax.Array:
        """Returns how much noise the chain's steps add; float32 [T, B, S] where there are windows.

        The arguments are those of `trained_steps`.
        """
        numbers = self.sampling
        if not numbers.window:
            return numbers.eta
        first = self.windows(step, batch)[..., None]
        position = jnp.arange(self.process.steps)
        inside = (first <= position) & (position < first + numbers.window)
        return jnp.where(inside, jnp.float32(numbers.eta), 0)

    def draw(
        self, params: Parameters, frozen: Frozen, input_ids: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Steps, Text]:
        """Draws every task's latents, with the current parameters unless `sampling.from_base`.

        The steps that a sample is trained on are known before it is drawn, and no others are kept.

        Args:
          params: the parameters that are trained.
          frozen: the parameters that are not trained.
          input_ids: the prompts' tokens, int32 [T, B, tokens].
          step: the iteration's number, int32 scalar.

        Returns:
          The final latents, the steps that are trained on, and the encoded text. The first axis of
          all of them is B * T: samples first, then tasks. Where groups branch, it is that of groups
          and tasks for the steps and the text; see `learning/branching.py`.
        """
        numbers = self.sampling
        current = self.adaptation.denoiser(params, frozen.base)
        drawing = frozen.base if numbers.from_base else current
        # A group's common steps are taken over all devices at once, by whole networks.
        by_blocks = self.adaptation.by_blocks and not numbers.branches
        denoiser, text_encoder = (
            gathered(network, self.mesh, self.model.dtype, by_blocks=by_blocks)
            for network in (drawing, frozen.text_encoder)
        )
        of_all = denoiser, text_encoder, frozen.empty_ids, step
        return (self._draw_groups if numbers.branches else self._draw_each)(of_all, input_ids)

    def _draw_groups(self, of_all, input_ids):
        """Draws as `draw` does, each group as one up to where its chains part."""
        numbers = self.sampling
        denoiser, text_encoder, empty_ids, step = of_all
        empty = self.model.encode_empty(text_encoder, empty_ids[None])

        def draw(arguments, index):
            ids, sources = arguments
            prompts = self.model.encode_text(text_encoder, ids[:, 0])
            text = conditions(prompts, empty, numbers.guidance_scale)
            keys = draws.noise_keys(numbers.seed, step, sources.reshape(-1, sources.shape[-1]))
            keys = keys.reshape(sources.shape)
            latents, steps = branch(
                self.model,
                self.process,
                denoiser,
                text,
                keys[:, 0],
                keys[:, :, index],
                index,
                eta=numbers.eta,
                guidance_scale=numbers.guidance_scale,
            )
            return latents, steps, text

        firsts, trained = self.trained_steps(step, input_ids.shape[1])
        sources = draws.noise_sources(firsts, trained, self.process.steps)
        places = self.branch_steps(step)
        arguments = (input_ids, sources), places, self.group, numbers.sample, self.mesh
        return jax.tree.map(samples_first, map_groups(draw, *arguments))

    def _draw_each(self, of_all, input_ids):
        """Draws as `draw` does, each sample by itself."""
        numbers = self.sampling
        tasks, batch, _ = input_ids.shape

        def draw(of_all, of_each):
            denoiser, text_encoder, empty_ids, step = of_all
            empty = self.model.encode_empty(text_encoder, empty_ids[None])

            def chain(arguments):
                ids, sources, kept, eta = arguments
                prompts = self.model.encode_text(text_encoder, ids)
                text = conditions(prompts, empty, numbers.guidance_scale)
                latents, steps = rollout(
                    self.model,
                    self.process,
                    denoiser,
                    text,
                    draws.noise_keys(numbers.seed, step, sources),
                    kept,
                    eta=numbers.eta if eta is None else eta,
                    guidance_scale=numbers.guidance_scale,
                )
                return latents, steps, text

            count = microbatch_count(tasks * batch, numbers.sample, self.mesh.size)
            return map_microbatches(chain, of_each, count, self.mesh)

        step = of_all[-1]
        firsts, trained = self.trained_steps(step, batch)
        sources = draws.noise_sources(firsts, trained, self.process.steps)
        eta = self.eta(step, batch)
        of_samples = samples_first(eta) if isinstance(eta, jax.Array) else None
        of_each = *map(samples_first, (input_ids, sources, trained)), of_samples
        return apply_by_device(draw, of_all, of_each, self.mesh)

    def sample(
        self, params: Parameters, frozen: Frozen, input_ids: jax.Array, step: jax.Array
    ) -> Samples:
        """Draws every task's samples, with their images or the latents to decode them from.

        The arguments are those of `draw`. The arrays of the result are [T, B, ...], or [T, groups,
        ...] where `draw` says so.
        """
        if not self.sampling.draws:
            return Samples(None, None, None)
        tasks, batch, _ = input_ids.shape
        latents, steps, text = self.draw(params, frozen, input_ids, step)
        later, keeps = self.scoring.decodes_to_score(batch), self.sampling.keeps_latents
        images = None if later else self.scoring.decode(frozen, latents)
        samples = Samples(steps, images, text, latents if later or keeps else None, keeps)
        unflatten = lambda x: x.reshape(len(x) // tasks, tasks, *x.shape[1:]).swapaxes(0, 1)
        return jax.tree.map(unflatten, samples)
