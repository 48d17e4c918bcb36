"""A reward's gradient through the chain's last step, taken several times: DRaFT-LV (2309.17400).

The published Algorithm 1 backpropagates the reward of the sample through the chain's last step, as
DRaFT-K with K = 1. Then it noises the sample to the time of that step again, each time with fresh
noise, takes the step from there, and backpropagates the reward of where it leads. The gradients'
sum varies less with the noise than the first alone, and no chain is drawn for it. Here each share
is an update, for which `config.optimizer.one_step` takes one step on their mean.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from diffusionrl_jax.algorithms.reward_gradient import ThroughReward, check_gradients
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.guidance import guide
from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.learning.algorithm import Needs
from diffusionrl_jax.learning.examples import Examples, noise_anew, side_by_side
from diffusionrl_jax.learning.experience import Experience
from diffusionrl_jax.learning.objectives import Scored


def needs(fields: Config) -> Needs:
    """Returns what the method needs, from `config.algorithm.draft_lv`."""
    count = 1 + fields.noises
    return Needs(count, steps=1, late_steps=1, latents=True, predictions=1, reward_gradient=True)


def check(config: Config) -> None:
    """Refuses a config that does not fit the method.

    Raises:
      UserError: a task's reward has no gradient.
    """
    check_gradients(config)


def make(config: Config, process: Process) -> "LastStepGradient":
    """Returns the objective of a config."""
    return LastStepGradient(
        process=process,
        seed=config.seed,
        guidance_scale=config.sampler.guidance_scale,
        weights=tuple(task.weight for task in config.tasks.values()),
        eta=config.sampler.eta,
        noises=config.algorithm.draft_lv.noises,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class LastStepGradient(ThroughReward):
    """The `Objective` minus the reward of where the chain's last step leads, from several latents.

    Attributes:
      eta: how much noise the chain's steps add, as in `rollout`. That of the last step is left out.
      noises: how many times each sample is noised anew, beside the latents that its chain came by.
    """

    eta: float
    noises: int

    def reached(self, output: jax.Array, latents: jax.Array, own: Mapping) -> jax.Array:
        """Returns the mean of the latents after the last step, which the output leads to.

        The arguments and the result are those of `ThroughReward.reached`.
        """
        last = jnp.full(len(latents), self.process.steps - 1)
        return self.process.step(guide(output, self.guidance_scale), latents, last, self.eta).mean

    def examples(
        self, experience: Experience, scored: Scored, predict: Callable
    ) -> tuple[Examples, None]:
        """Makes one update for each task of its chains' last step, and one for each new noise.

        The arguments and the result are those of `Objective.examples`.
        """
        latents = scored.samples.latents
        assert latents is not None  # `needs` asks for them.
        shown, _ = self.of_chain(experience, scored)
        if self.noises:
            arguments = self.process, latents, self.weights, self.seed, scored.step, self.noises
            again = noise_anew(*arguments, places=scored.places, time=self.process.times[-1])
            shown = side_by_side((shown, again), len(self.weights))
        return self.examples_of_guesses(shown, experience, scored, predict), None
