"""Learning from rewards by the denoising loss alone: DiffusionNFT (2509.16117), AWM (2509.25050).

No step of a chain is looked at. A sample is noised anew, and the denoiser's error there is made
smaller if its picture is better than expected, and larger if it is worse. What keeps the policy
near those that drew the samples differs between the methods. Any chain may draw them, also one
without noise and with few steps.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusionrl_jax.algorithms.losses import clipped_surrogate, mean_square
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.guidance import guide
from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.learning.algorithm import Needs
from diffusionrl_jax.learning.examples import Examples, noise_anew
from diffusionrl_jax.learning.experience import Experience
from diffusionrl_jax.learning.objectives import Metrics, Scored
from diffusionrl_jax.learning.state import DRAWING, TRAILING
from diffusionrl_jax.mistakes import UserError

# The least number that NFT divides an error by.
LEAST_ERROR = 1e-5


@dataclasses.dataclass(frozen=True, eq=False)
class ForwardProcess:
    """What the `Objective`s on samples that are noised anew have in common.

    `DiffusionNFT` and `AdvantageWeighted` are such objectives.

    Attributes:
      process: the process that noises the samples.
      seed: the run's seed.
      guidance_scale: the scale of classifier-free guidance that the chain is drawn with. The
        denoiser is trained with the same.
      weights: for each task, the factor of its loss.
      noises: how many times each sample is noised in an iteration; each time is an update.
      most_advantage: the number that advantages are clipped to, and then divided by.
      reference_weight: the factor of the mean squared difference between the denoiser's output and
        the base model's; 0 leaves it out.
    """

    process: Process
    seed: int
    guidance_scale: float
    weights: tuple[float, ...]
    noises: int
    most_advantage: float
    reference_weight: float

    # The outputs that the denoiser's is compared with, by their names in examples' own arrays.
    others = ("old",)
    # The metrics that only one of the methods has.
    own_metrics = ()

    @property
    def metrics(self) -> Mapping[str, str]:
        """How the values of several samples become one, for each metric; see `Objective`."""
        return dict.fromkeys(("matching_error", *self.distances, *self.own_metrics), "mean")

    @property
    def reference_share(self) -> float:
        """The factor of the distance to the base model in the loss."""
        return self.reference_weight

    @property
    def distances(self) -> tuple[str, ...]:
        """The metrics that are mean squared differences from the outputs of others."""
        base = ("base",) if self.reference_weight else ()
        return tuple(f"distance_to_{name}" for name in (*self.others, *base))

    def parameters(self, name: str, scored: Scored):
        """Returns the trained parameters with which one of `others` is computed."""
        return scored.params if name == "old" else scored.memory[TRAILING]

    def examples(
        self, experience: Experience, scored: Scored, predict: Callable
    ) -> tuple[Examples, None]:
        """Makes one update for each task and noise, with the others' outputs for the same latents.

        The arguments and the result are those of `Objective.examples`.
        """
        assert scored.samples.latents is not None  # `needs` asks for them.
        # A sample that is not finite has no advantage, but must not poison the others' gradient.
        clean = jnp.nan_to_num(scored.samples.latents, nan=0.0, posinf=0.0, neginf=0.0)
        arguments = self.process, clean, self.seed, scored.step, self.noises
        task, shown, times, target = noise_anew(*arguments)
        most = self.most_advantage
        own = {
            "target": target,
            "clean": clean[task],
            "advantages": jnp.clip(scored.advantages, -most, most)[task] / most,
        }
        weight = jnp.asarray(self.weights, jnp.float32)[task]
        examples = Examples(shown, times, task, weight, jnp.zeros_like(task), own)
        base, text = scored.frozen.base, scored.samples.text
        output = lambda output, latents, own: guide(output, self.guidance_scale)
        of_trained = lambda name: experience.adaptation.denoiser(
            self.parameters(name, scored), base
        )
        denoisers = {name: of_trained(name) for name in self.others}
        if self.reference_weight:
            denoisers["base"] = base
        said = {
            name: predict(denoiser, examples, text, output) for name, denoiser in denoisers.items()
        }
        return dataclasses.replace(examples, own=own | said), None

    def __call__(
        self, output: jax.Array, example: Examples, active: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Computes the method's loss with the distance to the base model.

        The arguments and the result are those of `Objective.__call__`.
        """
        output = guide(output, self.guidance_scale)
        error = mean_square(output - example.own["target"])
        found = {"matching_error": error}
        for metric in self.distances:
            other = example.own[metric.removeprefix("distance_to_")]
            found[metric] = mean_square(output - other)
        loss, said = self.loss(output, error, example, active, found)
        if self.reference_weight:
            loss += self.reference_share * found["distance_to_base"]
        return loss, found | said

    def loss(
        self,
        output: jax.Array,
        error: jax.Array,
        example: Examples,
        active: jax.Array,
        found: Metrics,
    ) -> tuple[jax.Array, Metrics]:
        """Computes the method's loss, [B], and its own metrics, [B] each.

        Args:
          output: the denoiser's guided output, float32 [B, ...].
          error: its mean squared error, float32 [B].
          example, active: as in `Objective.__call__`.
          found: the metrics so far, by name.
        """
        raise NotImplementedError

    def summary(self, values: Mapping, task_names: Sequence[str]) -> dict[str, float]:
        """Averages the metrics over each task's updates.

        Returns:
          "<task>/<metric>" for each task and metric.
        """
        return {
            f"{task}/{metric}": values[metric].reshape(len(task_names), -1)[row].mean()
            for row, task in enumerate(task_names)
            for metric in ("loss", "gradient_norm", *self.metrics)
        }


@dataclasses.dataclass(frozen=True, eq=False)
class DiffusionNFT(ForwardProcess):
    """The negative-aware loss of a good and a bad policy, made from the old and the current one.

    With outputs v of the current denoiser and v_old of the one that drew the samples, the good
    policy's output is (1 - beta) v_old + beta v, and the bad one's (1 + beta) v_old - beta v. The
    loss is p L(good) + (1 - p) L(bad) with p = (1 + advantage) / 2. L is the mean squared error of
    the clean latents divided by their mean absolute error, which has no gradient. The paper's loss
    is this one times its largest advantage over beta; the weight of the base model is therefore
    multiplied by the inverse.

    Attributes:
      beta: how far the two policies are from the old one.
    """

    beta: float = 1.0

    @property
    def reference_share(self) -> float:
        """The factor of the distance to the base model in the loss, on the scale of this loss."""
        return self.reference_weight * self.beta / self.most_advantage

    def loss(self, output, error, example, active, found):
        """Computes the paper's loss times beta / most_advantage.

        The arguments and the result are those of `ForwardProcess.loss`.
        """
        own = example.own
        of_latents = lambda output: self.process.clean(output, example.latents, example.times)
        change = self.beta * (of_latents(output) - of_latents(own["old"]))
        losses = []
        for sign in (1, -1):
            off = of_latents(own["old"]) + sign * change - own["clean"]
            size = jnp.abs(jax.lax.stop_gradient(off)).mean(axis=tuple(range(1, off.ndim)))
            losses.append(mean_square(off) / jnp.maximum(size, LEAST_ERROR))
        share = (1 + own["advantages"]) / 2
        return share * losses[0] + (1 - share) * losses[1], {}


@dataclasses.dataclass(frozen=True, eq=False)
class AdvantageWeighted(ForwardProcess):
    """Advantage weighted matching: a clipped policy gradient with -error as log-probability.

    Attributes:
      clip_range: how far the ratio may leave 1.
      trailing_weight: the factor of the mean squared difference between the denoiser's output and
        that of an average of its parameters that trails it.
    """

    clip_range: float = 1.0
    trailing_weight: float = 1.0

    others = ("old", "trailing")
    own_metrics = ("ratio", "clip_fraction")

    def loss(self, output, error, example, active, found):
        """Computes the clipped surrogate and the distance to the trailing average.

        The arguments and the result are those of `ForwardProcess.loss`.
        """
        own = example.own
        # There is no ratio for others' examples: an overflow there would poison the gradient.
        log_ratio = jnp.where(active, mean_square(own["old"] - own["target"]) - error, 0)
        surrogate = clipped_surrogate(log_ratio, own["advantages"], self.clip_range)
        loss = surrogate.loss + self.trailing_weight * found["distance_to_trailing"]
        return loss, {"ratio": jnp.exp(log_ratio), "clip_fraction": surrogate.clipped}


class Method(NamedTuple):
    """A method as `ALGORITHMS` has it.

    Attributes:
      name: the name of its fields in `config.algorithm`.
      objective: the class of its objective.
      follower: the name of the average of the parameters that the state's memory keeps.
    """

    name: str
    objective: type[ForwardProcess]
    follower: str

    def needs(self, fields: Config) -> Needs:
        """Returns what the method needs, from its fields in `config.algorithm`."""
        base = fields.reference_weight > 0
        return Needs(
            updates=fields.noises,
            latents=True,
            base=base,
            follower=self.follower,
            kept_of_example=2 + len(self.objective.others) + base,
            predictions=len(self.objective.others) + base,
        )

    def make(self, config: Config, process: Process) -> ForwardProcess:
        """Makes the objective that a config describes, for the process that draws its samples.

        Raises:
          UserError: a field is out of range.
        """
        fields = dict(config.algorithm[self.name])
        name = f"config.algorithm.{self.name}"
        if fields["noises"] < 1 or not fields["most_advantage"] > 0:
            raise UserError(f"{name}.noises must be at least 1, and most_advantage above 0.")
        if not 0 <= fields.pop("largest_decay") < 1 or fields.pop("decay_rate") < 0:
            raise UserError(
                f"{name}.largest_decay must be at least 0 and below 1, and decay_rate at least 0."
            )
        return self.objective(
            process=process,
            seed=config.seed,
            guidance_scale=config.sampler.guidance_scale,
            weights=tuple(task.weight for task in config.tasks.values()),
            **fields,
        )


NFT = Method("nft", DiffusionNFT, DRAWING)
AWM = Method("awm", AdvantageWeighted, TRAILING)
