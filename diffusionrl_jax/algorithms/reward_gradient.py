"""Learns from a reward's own gradient by guesses of clean latents, with what such methods share.

The denoiser's output leads to latents, here to its guess of the clean ones, and these are decoded
and scored. The reward's gradient with respect to these latents says in which direction they should
move. It is computed once an iteration, before the updates, so that no update holds the VAE or a
reward model. At the parameters that drew the samples, the loss has the reward's own gradient with
respect to the denoiser's parameters.

Here the denoiser is shown a sample's final latents, noised anew to times that are drawn between two
shares of the training's times: ReFL's loss, without its threshold, on the forward process. In
`refl`, `draft_k` and `draft_lv` it is shown latents of the chain, or of its last step's time.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.guidance import guide
from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.learning.algorithm import Needs
from diffusionrl_jax.learning.examples import Examples, noise_anew, of_steps
from diffusionrl_jax.learning.experience import Experience
from diffusionrl_jax.learning.objectives import Metrics, Scored
from diffusionrl_jax.learning.summary import means_by_task
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.rewards.scorers import without_gradient


def needs(fields: Config) -> Needs:
    """Returns what the method needs, from `config.algorithm.reward_gradient`."""
    return Needs(fields.noises, latents=True, predictions=1, reward_gradient=True)


def check(config: Config) -> None:
    """Refuses a config that does not fit the method.

    Raises:
      UserError: a field does not fit, or a task's reward has no gradient.
    """
    check_gradients(config)
    fields = config.algorithm.reward_gradient
    if not 0 <= fields.least_time < fields.most_time <= 1:
        raise UserError("config.algorithm.reward_gradient needs 0 <= least_time < most_time <= 1.")


def make(config: Config, process: Process) -> "RewardGradient":
    """Returns the objective of a config."""
    fields = config.algorithm.reward_gradient
    return RewardGradient(
        process=process,
        seed=config.seed,
        guidance_scale=config.sampler.guidance_scale,
        weights=tuple(task.weight for task in config.tasks.values()),
        noises=fields.noises,
        times=(fields.least_time, fields.most_time),
    )


def check_late_steps(config: Config, field: str) -> None:
    """Refuses more late steps than a chain has.

    Raises:
      UserError: the field of `config.algorithm` is not among 1 to the chain's steps.
    """
    method, name = field.split(".")
    count, steps = config.algorithm[method][name], config.sampler.steps
    if not 1 <= count <= steps:
        raise UserError(
            f"config.algorithm.{field}={count} must be between 1 and config.sampler.steps={steps}."
        )


def check_gradients(config: Config) -> None:
    """Refuses a config whose method differentiates rewards, where a task's reward has no gradient.

    Raises:
      UserError: a task's reward has none; it names the task and the reward.
    """
    for name, task in config.tasks.items():
        if parts := without_gradient(task.scorer):
            raise UserError(
                f"The method {config.algorithm.name} learns from the reward's gradient, and task "
                f"{name}'s {', '.join(parts)} has none: set config.tasks.{name}.algorithm to "
                "another one, or leave the task out."
            )


def reward_gradients(
    experience: Experience, scored: Scored, latents: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Decodes and scores latents, and differentiates the scores by them.

    Args:
      experience: what decodes and scores.
      scored: the iteration's samples, whose prompts the latents are of.
      latents: float32 [T, N, B, ...], N latents for each of a task's samples.

    Returns:
      The scores, float32 [T * N, B], and their gradients, float32 [T * N, B, ...]. Both are 0 where
      a sample or its score is not finite.
    """
    scoring, found = experience.scoring, []
    for row, task in enumerate(scored.tasks):
        gradient = lambda latents, task=task: scoring.reward_gradient(
            task, scored.frozen, latents, scored.batch.reward_inputs[task]
        )
        found.append(jax.lax.map(gradient, latents[row]))
    rewards, gradients = jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)
    of_samples = jnp.repeat(jnp.isfinite(scored.rewards), latents.shape[1], axis=0)
    valid = of_samples & jnp.isfinite(rewards)
    usable = valid.reshape(*valid.shape, *(1,) * (gradients.ndim - 2)) & jnp.isfinite(gradients)
    return jnp.where(valid, rewards, 0), jnp.where(usable, gradients, 0)


@dataclasses.dataclass(frozen=True, eq=False)
class ThroughReward:
    """What the `Objective`s have in common whose loss is made linear in latents that are scored.

    `RewardGradient`, `refl.RewardFeedback`, `draft_k.ChainGradient` and `draft_lv.LastStepGradient`
    are these objectives.

    Attributes:
      process: the process that the denoiser was trained on.
      seed: the run's seed.
      guidance_scale: the scale of classifier-free guidance, with which guesses are made too.
      weights: for each task, the factor of its loss.
    """

    process: Process
    seed: int
    guidance_scale: float
    weights: tuple[float, ...]

    metrics = {"reward_of_guess": "mean"}

    def reached(self, output: jax.Array, latents: jax.Array, own: Mapping) -> jax.Array:
        """Returns the latents that the denoiser's output leads to: its guess of the clean ones.

        Args:
          output: the denoiser's output, float32 [B, P, ...].
          latents: what the denoiser was shown, float32 [B, ...].
          own: the examples' own arrays, with "times" [B].

        Returns:
          float32 [B, ...].
        """
        return self.process.clean(guide(output, self.guidance_scale), latents, own["times"])

    def of_chain(self, experience: Experience, scored: Scored) -> tuple[Examples, jax.Array]:
        """Shows the denoiser what it was shown at the steps of each sample's chain that are kept.

        Args:
          experience, scored: as in `Objective.examples`.

        Returns:
          The examples of `of_steps`, and the steps' positions in the chain, int32 [T, B, K].
        """
        steps = scored.samples.steps
        assert steps is not None  # `needs` asks for them.
        _, trained = experience.trained_steps(scored.step, scored.rewards.shape[1])
        trained = scored.own(trained)
        return of_steps(self.process, steps.latents, trained, self.weights), trained

    def cost(self, rewards: jax.Array) -> jax.Array:
        """Returns what is made small, of the rewards' shape: minus the reward."""
        return -rewards

    def towards(self, rewards: jax.Array, gradients: jax.Array) -> dict[str, jax.Array]:
        """Returns the arrays that the loss takes of an example, by name.

        Args:
          rewards: float32 [U, B].
          gradients: the rewards' gradients by the latents that are reached, float32 [U, B, ...].
        """
        slopes = jax.vmap(jax.vmap(jax.grad(self.cost)))(rewards)
        slopes = slopes.reshape(*slopes.shape, *(1,) * (gradients.ndim - slopes.ndim))
        return {"direction": -slopes * gradients, "reward_of_guess": rewards}

    def examples_of_guesses(
        self, examples: Examples, experience: Experience, scored: Scored, predict: Callable
    ) -> Examples:
        """Guesses clean latents, scores the guesses, and adds the gradients to the examples.

        Args:
          examples: what the denoiser is shown, the tasks' updates one after another, equally many
            of each.
          experience, scored, predict: as in `Objective.examples`.
        """
        examples = dataclasses.replace(examples, own={"times": examples.times})
        denoiser = experience.adaptation.denoiser(scored.params, scored.frozen.base)
        guesses = predict(denoiser, examples, scored.samples.text, self.reached)
        by_task = guesses.reshape(len(self.weights), -1, *guesses.shape[1:])
        found = self.towards(*reward_gradients(experience, scored, by_task))
        return dataclasses.replace(examples, own={**examples.own, **found})

    def __call__(
        self, output: jax.Array, example: Examples, active: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns the cost, [B], with the gradient of the reward's, and the metrics.

        The arguments and the result are those of `Objective.__call__`.
        """
        own = example.own
        reached = self.reached(output, example.latents, own)
        along = (own["direction"] * reached).sum(axis=tuple(range(1, reached.ndim)))
        reward = own["reward_of_guess"]
        loss = jax.lax.stop_gradient(along) - along + self.cost(reward)
        return loss, {"reward_of_guess": reward}

    def summary(self, values: Mapping, task_names: Sequence[str]) -> dict[str, float]:
        """Averages "loss", "gradient_norm" and "reward_of_guess"; see `means_by_task`."""
        return means_by_task(values, task_names, ("loss", "gradient_norm", *self.metrics))


@dataclasses.dataclass(frozen=True, eq=False)
class RewardGradient(ThroughReward):
    """The `Objective` minus the reward of the denoiser's guess of noised samples.

    Attributes:
      noises: how many times each sample is noised in an iteration; each time is an update.
      times: samples are noised to a time between these two shares of the training's times.
    """

    noises: int
    times: tuple[float, float]

    def examples(
        self, experience: Experience, scored: Scored, predict: Callable
    ) -> tuple[Examples, None]:
        """Makes one update for each task and noise, with the reward's gradient by the guess.

        The arguments and the result are those of `Objective.examples`.
        """
        assert scored.samples.latents is not None  # `needs` asks for them.
        arguments = self.process, scored.samples.latents, self.weights, self.seed, scored.step
        noised = noise_anew(*arguments, self.noises, places=scored.places, times=self.times)
        return self.examples_of_guesses(noised, experience, scored, predict), None
