"""Fine-tuning on a model's own pictures, of which the better ones weigh more: nothing is unlearned.

The denoising loss of each sample is multiplied by a weight that depends on its reward: the reward
scaled to between 0 and 1 (2302.12192, with which the paper compares), a softmax of the rewards
(RWR, 2305.13301), or 1 for a prompt's best sample alone (RAFT, 2304.06767), which is then learned
from in the place of all of that prompt's, each time with noise of its own.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from diffusionrl_jax.algorithms.groups import best_of_group, from_group
from diffusionrl_jax.algorithms.losses import pretraining
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.learning.algorithm import Needs
from diffusionrl_jax.learning.examples import Examples, noise_anew
from diffusionrl_jax.learning.experience import Experience
from diffusionrl_jax.learning.objectives import Metrics, Scored
from diffusionrl_jax.learning.summary import means_by_task
from diffusionrl_jax.mistakes import UserError

WEIGHTINGS = ("min_max", "softmax", "best")


def needs(fields: Config) -> Needs:
    """Returns what the method needs, from the fields of `config.algorithm.reward_weighted`."""
    return Needs(fields.noises, latents=True, base=fields.from_base, drawn_by_base=fields.from_base)


def check(config: Config) -> None:
    """Refuses a config that does not fit the method.

    Raises:
      UserError: a prompt's best sample is asked for, and a task has one sample of each.
    """
    alone = [name for name, task in config.tasks.items() if task.group_size < 2]
    if config.algorithm.reward_weighted.weighting == "best" and alone:
        raise UserError(
            "config.algorithm.reward_weighted.weighting='best' takes the best of each prompt's "
            f"images: set the group_size of task {alone[0]} to 2 or more."
        )


def make(config: Config, process: Process) -> "RewardWeighted":
    """Makes the objective that a config describes, for the process that draws its samples."""
    fields = config.algorithm.reward_weighted
    names = "weighting", "temperature", "noises"
    return make_objective(config, process, **{name: fields[name] for name in names})


def make_objective(config: Config, process: Process, **fields) -> "RewardWeighted":
    """Makes the objective for a config's tasks.

    Args:
      config: see `experiments/config.py`.
      process: the process that draws the samples.
      **fields: the attributes of `RewardWeighted` that say how samples are weighted and noised.
    """
    tasks = config.tasks.values()
    return RewardWeighted(
        process=process,
        seed=config.seed,
        weights=tuple(task.weight for task in tasks),
        group_sizes=tuple(task.group_size for task in tasks),
        text_dropout=config.pretraining.text_dropout,
        **fields,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class RewardWeighted:
    """The `Objective` of the reward-weighted denoising loss.

    Attributes:
      process: the process that noises the samples.
      seed: the run's seed.
      weights: for each task, the factor of its loss.
      group_sizes: for each task, how many neighbours are of one prompt.
      weighting: how a reward r becomes a weight. "min_max" is (r - least) / (largest - least) over
        a task's batch; "softmax" is proportional to exp(r / temperature), with a mean of 1; by
        "best" the best sample of each group is learned from in the place of all, and weighs 1.
      temperature: the softmax' temperature, in units of the reward.
      noises: how many times each sample is noised in an iteration; each time is an update.
      text_dropout: the probability of the empty prompt. It has an effect where the model is sampled
        with guidance.
    """

    process: Process
    seed: int
    weights: tuple[float, ...]
    group_sizes: tuple[int, ...]
    weighting: str = "min_max"
    temperature: float = 1.0
    noises: int = 1
    text_dropout: float = 0.1

    metrics = {"sample_weight": "mean"}

    def sample_weights(self, rewards: jax.Array) -> jax.Array:
        """Computes the weights of one task's samples by "min_max" or "softmax".

        Args:
          rewards: float32 [B].

        Returns:
          float32 [B]; 0 for samples whose reward is not finite.
        """
        valid = jnp.isfinite(rewards)
        least = jnp.min(rewards, where=valid, initial=jnp.inf)
        largest = jnp.max(rewards, where=valid, initial=-jnp.inf)
        if self.weighting == "softmax":
            shares = jnp.where(valid, jnp.exp((rewards - largest) / self.temperature), 0)
            return shares * valid.sum() / jnp.maximum(shares.sum(), 1e-8)
        # Samples that are all equally good weigh as they would without rewards.
        scaled = (rewards - least) / jnp.where(largest > least, largest - least, 1)
        return jnp.where(valid, jnp.where(largest > least, scaled, 1), 0)

    def learned_from(
        self, latents: jax.Array, rewards: jax.Array, group_size: int
    ) -> tuple[jax.Array, jax.Array]:
        """Chooses the sample that each place of one task's batch has, and how much it weighs.

        Args:
          latents: the samples' final latents, float32 [B, ...].
          rewards: float32 [B].
          group_size: how many neighbours are of one prompt.

        Returns:
          Latents, float32 [B, ...], which "best" has changed, and weights, float32 [B].
        """
        if self.weighting != "best":
            return latents, self.sample_weights(rewards)
        valid = jnp.isfinite(rewards)
        best = best_of_group(rewards, valid, group_size)
        weights = from_group(valid.astype(jnp.float32), best, group_size)
        return from_group(latents, best, group_size), weights

    def examples(
        self, experience: Experience, scored: Scored, predict: Callable
    ) -> tuple[Examples, None]:
        """Makes one update per task and noise, on the samples' final latents noised anew.

        The arguments and the result are those of `Objective.examples`.
        """
        assert scored.samples.latents is not None  # `needs` asks for them.
        rows = zip(scored.samples.latents, scored.rewards, self.group_sizes, strict=True)
        chosen = (self.learned_from(*row) for row in rows)
        latents, weights = map(jnp.stack, zip(*chosen, strict=True))
        arguments = self.process, latents, self.weights, self.seed, scored.step
        examples = noise_anew(*arguments, self.noises, places=scored.places)
        own = {**examples.own, "sample_weight": weights[examples.text]}
        return dataclasses.replace(examples, own=own), None

    def __call__(
        self, output: jax.Array, example: Examples, active: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Computes each sample's denoising error times its weight.

        The arguments and the result are those of `Objective.__call__`.
        """
        weight = example.own["sample_weight"]
        errors = pretraining(output, example.own["target"], self.text_dropout)
        return weight * errors, {"sample_weight": weight}

    def summary(self, values: Mapping, task_names: Sequence[str]) -> dict[str, float]:
        """Averages "loss", "gradient_norm" and "sample_weight"; see `means_by_task`."""
        return means_by_task(values, task_names, ("loss", "gradient_norm", *self.metrics))
