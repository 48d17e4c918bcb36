"""Diffusion-DPO (2311.12908) on pairs of pictures that people chose between: nothing is drawn.

Both pictures of a pair are noised alike, and the denoiser's error for the chosen one is lowered
against that for the other, beside the base model's. As published, neither is guided, whatever the
model is sampled with, and a share of the pairs has the empty prompt. Pictures are not mirrored.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.algorithms.losses import mean_square
from diffusionrl_jax.algorithms.pretraining import drop_text, encode_captions
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.learning import draws
from diffusionrl_jax.learning.algorithm import Needs
from diffusionrl_jax.learning.examples import Examples, noise_anew
from diffusionrl_jax.learning.experience import Experience
from diffusionrl_jax.learning.objectives import Metrics, Scored
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.text_to_image import Text
from diffusionrl_jax.rewards.scorers import is_on_host

PAIR = 2


def needs(fields: Config) -> Needs:
    """Returns what the method needs, from the fields of `config.algorithm.dpo_offline`."""
    return Needs(fields.noises, base=True, kept_of_example=2, predictions=1, pairs=True)


def check(config: Config) -> None:
    """Refuses a config that does not fit the method.

    Raises:
      UserError: no pairs are named, a task's reward is on the host, which would wait for pictures,
        or its weight would be of no account.
    """
    fields = config.algorithm.dpo_offline
    if not fields.pairs:
        raise UserError(
            "config.algorithm.dpo_offline.pairs is empty: name a parquet file, or a folder of some."
        )
    for name, task in config.tasks.items():
        if is_on_host(task.scorer):
            raise UserError(
                "The method dpo_offline draws nothing that could be scored: leave task "
                f"{name} with its host_reward out."
            )
        if task.weight != 1:
            raise UserError(
                f"config.tasks.{name}.weight={task.weight} has no effect on the pairs that the "
                "method dpo_offline learns from: leave it at 1."
            )


def make(config: Config, process: Process) -> "OfflinePreference":
    """Makes the objective that a config describes."""
    fields = config.algorithm.dpo_offline
    return OfflinePreference(
        process=process,
        seed=config.seed,
        beta=fields.beta,
        noises=fields.noises,
        text_dropout=fields.text_dropout,
        microbatch=config.microbatch.train,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class OfflinePreference:
    """The `Objective` of Diffusion-DPO on pairs of pictures.

    Attributes:
      process: the process that noises the pictures.
      seed: the run's seed.
      beta: how strongly the policy is held to the base model.
      noises: how many times each pair is noised in an iteration; each time is an update.
      text_dropout: the probability that a pair has the empty prompt in place of its caption.
      microbatch: how many captions each device encodes at a time; 0 means all at once.
    """

    process: Process
    seed: int
    beta: float = 2000.0
    noises: int = 1
    text_dropout: float = 0.2
    microbatch: int = 0

    metrics = dict.fromkeys(("matching_error", "distance_to_base", "preferred"), "mean")

    def examples(
        self, experience: Experience, scored: Scored, predict: Callable
    ) -> tuple[Examples, Text]:
        """Makes one update for each noise, on all pairs of the batch.

        The arguments and the result are those of `Objective.examples`.
        """
        pictures = scored.batch.pairs
        assert pictures is not None  # `needs` asks for them.
        mean, std = pictures["latent_mean"], pictures["latent_std"]
        places = jnp.arange(len(mean))
        keys = draws.keys(self.seed, scored.step, draws.ENCODING, places)
        clean = mean + std * jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
        examples = noise_anew(
            *(self.process, clean[None], (1.0,), self.seed, scored.step, self.noises),
            places=places[None],
            sources=(places // PAIR * PAIR)[None],
        )
        captions, empty = encode_captions(pictures, experience, scored, self.microbatch)
        keys = draws.keys(self.seed, scored.step, draws.CAPTIONS, places // PAIR)
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, self.text_dropout))(keys)
        captions = drop_text(captions, empty, dropped)
        # One row, of one pass: nothing is guided.
        text = jax.tree.map(lambda array: array[None, :, None], captions)
        output = lambda output, latents, own: output[:, 0]
        base = predict(scored.frozen.base, examples, text, output)
        return dataclasses.replace(examples, own={**examples.own, "base": base}), text

    def __call__(
        self, output: jax.Array, example: Examples, active: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Computes Eq. 14 of 2311.12908, the same for both pictures of a pair.

        The arguments and the result are those of `Objective.__call__`.
        """
        own, output = example.own, output[:, 0]
        error = mean_square(output - own["target"])
        change = jnp.where(active, error - mean_square(own["base"] - own["target"]), 0)
        chosen, other = change.reshape(-1, PAIR).T
        margin = jnp.repeat(self.beta / 2 * (other - chosen), PAIR)
        return -jax.nn.log_sigmoid(margin), {
            "matching_error": error,
            "distance_to_base": mean_square(output - own["base"]),
            "preferred": (margin > 0).astype(jnp.float32),
        }

    def summary(
        self, values: Mapping[str, np.ndarray], task_names: Sequence[str]
    ) -> dict[str, float]:
        """Averages the loss, the gradient's norm and the metrics, as "pairs/<metric>"."""
        names = ("loss", "gradient_norm", *self.metrics)
        return {f"pairs/{name}": float(values[name].mean()) for name in names}
