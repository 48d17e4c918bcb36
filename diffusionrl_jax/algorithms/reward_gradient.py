"""Learns from a reward's own gradient: DRaFT-LV (2309.17400), for rewards that have one.

A sample's final latents are noised anew, and the denoiser's guess of the clean latents is decoded
and scored. The reward's gradient with respect to that guess says in which direction the guess
should move. It is computed once an iteration, before the updates, so that no update holds the VAE
or a reward model. At the parameters that drew the samples, the loss has the reward's own gradient
with respect to the denoiser's parameters.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.guidance import guide
from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.learning.algorithm import Needs
from diffusionrl_jax.learning.examples import Examples, noise_anew
from diffusionrl_jax.learning.experience import Experience
from diffusionrl_jax.learning.objectives import Metrics, Scored
from diffusionrl_jax.learning.summary import means_by_task
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.rewards.scorers import without_gradient


def needs(fields: Config) -> Needs:
    """Returns what the method needs, from `config.algorithm.draft_lv`."""
    return Needs(fields.noises, latents=True, predictions=1, reward_gradient=True)


def make(config: Config, process: Process) -> "RewardGradient":
    """Returns the objective of a config.

    Raises:
      UserError: a field does not fit, or a task's reward has no gradient.
    """
    fields, tasks = config.algorithm.draft_lv, config.tasks
    for name, task in tasks.items():
        if parts := without_gradient(task.scorer):
            raise UserError(
                f"config.algorithm.name='draft_lv' learns from the reward's gradient, and task "
                f"{name}'s {', '.join(parts)} has none: take another method, or leave the task out."
            )
    least, most = fields.least_time, fields.most_time
    if not 0 <= least < most <= 1 or fields.noises < 1:
        raise UserError(
            "config.algorithm.draft_lv.noises must be at least 1, and 0 <= least_time < most_time "
            "<= 1."
        )
    return RewardGradient(
        process=process,
        seed=config.seed,
        guidance_scale=config.sampler.guidance_scale,
        weights=tuple(task.weight for task in tasks.values()),
        noises=fields.noises,
        times=(least, most),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class RewardGradient:
    """The `Objective` minus the reward of the denoiser's guess, made linear in the guess.

    Attributes:
      process: the process that noises the samples.
      seed: the run's seed.
      guidance_scale: the scale of classifier-free guidance, with which the guess is made too.
      weights: for each task, the factor of its loss.
      noises: how many times each sample is noised in an iteration; each time is an update.
      times: samples are noised to a time between these two shares of the training's times.
    """

    process: Process
    seed: int
    guidance_scale: float
    weights: tuple[float, ...]
    noises: int
    times: tuple[float, float]

    metrics = {"reward_of_guess": "mean"}

    def guess(self, output: jax.Array, latents: jax.Array, own: Mapping) -> jax.Array:
        """Returns the clean latents, float32 [B, ...], that the denoiser's output means.

        Args:
          output: the denoiser's output, float32 [B, P, ...].
          latents: what the denoiser was shown, float32 [B, ...].
          own: the examples' own arrays, with "times" [B].
        """
        return self.process.clean(guide(output, self.guidance_scale), latents, own["times"])

    def examples(
        self, experience: Experience, scored: Scored, predict: Callable
    ) -> tuple[Examples, None]:
        """Makes one update for each task and noise, with the reward's gradient by the guess.

        The arguments and the result are those of `Objective.examples`.
        """
        assert scored.samples.latents is not None  # `needs` asks for them.
        arguments = self.process, scored.samples.latents, self.weights, self.seed, scored.step
        noised = noise_anew(*arguments, self.noises, times=self.times)
        examples = dataclasses.replace(noised, own={"times": noised.times})
        frozen, task = scored.frozen, examples.text
        denoiser = experience.adaptation.denoiser(scored.params, frozen.base)
        guesses = predict(denoiser, examples, scored.samples.text, self.guess)
        by_task = guesses.reshape(len(self.weights), self.noises, *guesses.shape[1:])
        found = []
        for number, inputs in enumerate(scored.batch.reward_inputs):
            gradient = lambda guess, number=number, inputs=inputs: experience.reward_gradient(
                number, frozen, guess, inputs
            )
            found.append(jax.lax.map(gradient, by_task[number]))
        rewards, directions = jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)
        # A sample that is not finite gets no direction.
        valid = jnp.isfinite(scored.rewards)[task] & jnp.isfinite(rewards)
        usable = valid.reshape(*valid.shape, *(1,) * (directions.ndim - 2))
        own = {
            "times": examples.times,
            "direction": jnp.where(usable & jnp.isfinite(directions), directions, 0),
            "reward_of_guess": jnp.where(valid, rewards, 0),
        }
        return dataclasses.replace(examples, own=own), None

    def __call__(
        self, output: jax.Array, example: Examples, active: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns minus the reward of the guess, [B], with the reward's gradient, and the metrics.

        The arguments and the result are those of `Objective.__call__`.
        """
        own = example.own
        guess = self.guess(output, example.latents, own)
        along = (own["direction"] * guess).sum(axis=tuple(range(1, guess.ndim)))
        reward = own["reward_of_guess"]
        return jax.lax.stop_gradient(along) - along - reward, {"reward_of_guess": reward}

    def summary(self, values: Mapping, task_names: Sequence[str]) -> dict[str, float]:
        """Averages "loss", "gradient_norm" and "reward_of_guess"; see `means_by_task`."""
        return means_by_task(values, task_names, ("loss", "gradient_norm", *self.metrics))
