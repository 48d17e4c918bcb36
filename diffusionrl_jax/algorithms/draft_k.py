"""Backpropagation of a reward through the chain's last K steps: DRaFT-K (2309.17400), AlignProp.

The reward's gradient by the final latents is pulled back through the last K steps, one after
another, as the gradient by the latents after each of them. A step's share of the reward's gradient
by the denoiser's parameters then follows from that step alone. Each of the K shares is an update,
so that no update holds more than one run of the denoiser, the VAE or a reward model; at the
parameters that drew the samples they add up to the gradient through the truncated chain. With K = 1
the update is the paper's. In AlignProp (2310.03739) each sample has a K of its own, at random.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from diffusionrl_jax.algorithms.reward_gradient import (
    ThroughReward,
    check_gradients,
    check_late_steps,
    reward_gradients,
)
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.guidance import denoise_passes, guide
from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.distributed.mesh import gather_parameters
from diffusionrl_jax.distributed.microbatch import map_microbatches, microbatch_count
from diffusionrl_jax.learning import draws
from diffusionrl_jax.learning.algorithm import Needs
from diffusionrl_jax.learning.examples import Examples, by_update
from diffusionrl_jax.learning.experience import Experience
from diffusionrl_jax.learning.objectives import Scored
from diffusionrl_jax.mistakes import UserError


def needs(fields: Config) -> Needs:
    """Returns what the method needs, from `config.algorithm.draft_k`."""
    count = fields.steps
    return Needs(
        count,
        steps=count,
        late_steps=count,
        latents=True,
        reward_gradient=True,
        chain_gradient=count > 1,
    )


def check(config: Config) -> None:
    """Refuses a config that does not fit the method.

    Raises:
      UserError: the chain has fewer steps than K, a task's reward has no gradient, or K is above 1
        and steps depend on more than the latents before them.
    """
    check_gradients(config)
    check_late_steps(config, "draft_k.steps")
    if (order := config.sampler.order) > 1 and (steps := config.algorithm.draft_k.steps) > 1:
        raise UserError(
            f"config.sampler.order={order} takes two outputs for a step, and gradients are pulled "
            f"back through one: set it to 1, or config.algorithm.draft_k.steps={steps} to 1."
        )


def make(config: Config, process: Process) -> "ChainGradient":
    """Returns the objective of a config."""
    fields = config.algorithm.draft_k
    return ChainGradient(
        process=process,
        seed=config.seed,
        guidance_scale=config.sampler.guidance_scale,
        weights=tuple(task.weight for task in config.tasks.values()),
        eta=config.sampler.eta,
        random_steps=fields.random_steps,
        microbatch=config.microbatch.train,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ChainGradient(ThroughReward):
    """The `Objective` minus the reward of a sample, through the last K steps of its chain.

    Attributes:
      eta: how much noise the chain's steps add, as in `rollout`. The noise is taken as given.
      random_steps: whether each sample's number of steps is drawn anew in each iteration, from 1 to
        K, all with the same probability.
      microbatch: how many samples each device pulls gradients back for at a time; 0 means all.
    """

    eta: float
    random_steps: bool = False
    microbatch: int = 0

    def reached(self, output: jax.Array, latents: jax.Array, own: Mapping) -> jax.Array:
        """Returns the mean of the latents after the step, which the denoiser's output leads to.

        The arguments and the result are those of `ThroughReward.reached`, with the step's position
        in the chain, int32 [B], as "step_index".
        """
        output = guide(output, self.guidance_scale)
        return self.process.step(output, latents, own["step_index"], self.eta).mean

    def examples(
        self, experience: Experience, scored: Scored, predict: Callable
    ) -> tuple[Examples, None]:
        """Makes one update for each task and step, with the reward's gradient by what follows it.

        The arguments and the result are those of `Objective.examples`.
        """
        latents, steps = scored.samples.latents, scored.samples.steps
        assert latents is not None and steps is not None  # `needs` asks for them.
        shown, trained = self.of_chain(experience, scored)
        rewards, gradients = reward_gradients(experience, scored, latents[:, None])
        gradients = by_update(
            self.pulled_back(experience, scored, steps.latents, trained, gradients)
        )
        found = self.towards(rewards[shown.text], gradients)
        return dataclasses.replace(shown, own={**shown.own, **found}), None

    def pulled_back(
        self,
        experience: Experience,
        scored: Scored,
        latents: jax.Array,
        trained: jax.Array,
        gradients: jax.Array,
    ) -> jax.Array:
        """Returns the reward's gradients by the latents after each of the last K steps.

        Args:
          experience, scored: as in `Objective.examples`.
          latents: the latents before each of these steps, float32 [T, B, K, ...].
          trained: the positions of the last K steps in the chain, in order, int32 [T, B, K].
          gradients: the rewards' gradients by the final latents, float32 [T, B, ...].

        Returns:
          float32 [T, B, K, ...]; 0 where a step lies before the steps that are drawn for a sample.
        """
        model, mesh = experience.model, experience.mesh
        denoiser = experience.adaptation.denoiser(scored.params, scored.frozen.base)
        whole = gather_parameters(denoiser, mesh, model.dtype)
        tasks, batch, count = trained.shape

        def back(text, after, taken):
            latents, index = taken

            def step(latents):
                times = self.process.times[index]
                output = denoise_passes(model, whole, latents, times, text)
                return self.reached(output, latents, {"step_index": index})

            _, pull = jax.vjp(step, latents)
            return pull(after)[0], after

        def of_part(part):
            latents, index, text, last = part
            # Nothing needs the gradient by what the first of the steps is taken from.
            later = jnp.moveaxis(latents[:, 1:], 1, 0), jnp.moveaxis(index[:, 1:], 1, 0)
            of_text = lambda after, taken: back(text, after, taken)
            first, others = jax.lax.scan(of_text, last, later, reverse=True)
            return jnp.concatenate([first[:, None], jnp.moveaxis(others, 0, 1)], axis=1)

        parts = microbatch_count(batch, self.microbatch, mesh.size)
        of_task = lambda arrays: map_microbatches(of_part, arrays, parts, mesh)
        arrays = latents, trained, scored.samples.text, gradients
        found = jax.lax.map(of_task, arrays)
        if not self.random_steps:
            return found
        places = scored.places.reshape(-1)
        keys = draws.keys(self.seed, scored.step, draws.FORWARD, places)
        drawn = jax.vmap(lambda key: jax.random.randint(key, (), 1, count + 1))(keys)
        kept = jnp.arange(count) >= count - drawn.reshape(tasks, batch, 1)
        return jnp.where(kept.reshape(*kept.shape, *(1,) * (found.ndim - 3)), found, 0)
