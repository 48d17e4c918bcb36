"""Reward feedback learning (ReFL, 2304.05977): a reward's gradient by a guess late in the chain.

Each sample's chain is looked at before one of its last steps, drawn at random. The denoiser guesses
the clean latents there, and the guess is decoded and scored. Rewards that are high enough have no
gradient. The paper trains with the pretraining loss beside it: `config.pretraining`.
"""

import dataclasses
from collections.abc import Callable

import jax

from diffusionrl_jax.algorithms.reward_gradient import (
    ThroughReward,
    check_gradients,
    check_late_steps,
)
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.learning.algorithm import Needs
from diffusionrl_jax.learning.examples import Examples
from diffusionrl_jax.learning.experience import Experience
from diffusionrl_jax.learning.objectives import Scored


def needs(fields: Config) -> Needs:
    """Returns what the method needs, from `config.algorithm.refl`."""
    return Needs(1, steps=1, late_steps=fields.late_steps, predictions=1, reward_gradient=True)


def check(config: Config) -> None:
    """Refuses a config that does not fit the method.

    Raises:
      UserError: the chain has fewer steps than the late ones, or a task's reward has no gradient.
    """
    check_gradients(config)
    check_late_steps(config, "refl.late_steps")


def make(config: Config, process: Process) -> "RewardFeedback":
    """Returns the objective of a config."""
    fields = config.algorithm.refl
    return RewardFeedback(
        process=process,
        seed=config.seed,
        guidance_scale=config.sampler.guidance_scale,
        weights=tuple(task.weight for task in config.tasks.values()),
        enough=fields.enough,
        scale=fields.scale,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class RewardFeedback(ThroughReward):
    """The `Objective` of how much a guess late in the chain is short of a reward that is enough.

    Attributes:
      enough: the reward from which on there is no gradient.
      scale: the factor of the loss.
    """

    enough: float = 2.0
    scale: float = 1e-3

    def cost(self, rewards: jax.Array) -> jax.Array:
        """Returns scale * max(enough - reward, 0), the paper's loss as its released code has it."""
        return self.scale * jax.nn.relu(self.enough - rewards)

    def examples(
        self, experience: Experience, scored: Scored, predict: Callable
    ) -> tuple[Examples, None]:
        """Makes one update for each task, each sample before one of its last steps.

        The arguments and the result are those of `Objective.examples`.
        """
        shown, _ = self.of_chain(experience, scored)
        return self.examples_of_guesses(shown, experience, scored, predict), None
