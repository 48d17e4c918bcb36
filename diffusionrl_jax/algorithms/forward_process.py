"""Learns from rewards by the denoising loss alone: NFT, AWM and DGPO.

No step of a chain is trained on. A sample is noised anew, and the denoiser's error there is made
smaller if its picture is better than expected, and larger if it is worse. What keeps the policy
near those that drew the samples differs between the methods. Any chain may draw them, also one
without noise and with few steps.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusionrl_jax.algorithms.groups import centred, of_group
from diffusionrl_jax.algorithms.losses import clipped_surrogate, mean_square, relative_error
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.guidance import guide
from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.diffusion.rectified_flow import RectifiedFlow
from diffusionrl_jax.learning import draws
from diffusionrl_jax.learning.algorithm import Needs
from diffusionrl_jax.learning.examples import Examples, noise_anew
from diffusionrl_jax.learning.experience import Experience
from diffusionrl_jax.learning.objectives import Metrics, Scored
from diffusionrl_jax.learning.state import DRAWING, TRAILING
from diffusionrl_jax.learning.summary import means_by_task
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.parameters import Parameters

# What NFT's errors may be of; the first is the paper's.
ERRORS = ("clean", "output")
# How AWM makes log-probabilities of errors; see `AdvantageWeighted`.
ERROR_WEIGHTINGS = ("auto", "none")
# To which power its published configs raise errors, and what keeps the gradient there finite.
POWER, TINY = 0.25, 1e-10


def _distance_to(name: str) -> str:
    """Returns the name of the metric that is the mean squared difference from another's output."""
    return f"distance_to_{name}"


@dataclasses.dataclass(frozen=True, eq=False)
class ForwardProcess:
    """What the `Objective`s on samples that are noised anew have in common.

    `DiffusionNFT`, `AdvantageWeighted`, `GroupPreference`, `CentredReward` and `DirectPreference`
    are these objectives.

    Attributes:
      process: the process that noises the samples.
      seed: the run's seed.
      guidance_scale: the scale of classifier-free guidance that the chain is drawn with. The
        denoiser is trained with the same.
      weights: for each task, the factor of its loss.
      noises: how many times each sample is noised in an iteration; each time is an update.
      group_sizes: for each task, how many neighbours in the batch are of one prompt.
      most_advantage: the number that advantages are clipped to, and then divided by.
      reference_weight: the factor of the mean squared difference between the denoiser's output and
        the base model's; 0 leaves it out.
    """

    process: Process
    seed: int
    guidance_scale: float
    weights: tuple[float, ...]
    noises: int
    group_sizes: tuple[int, ...]
    most_advantage: float
    reference_weight: float

    # The outputs that the denoiser's is compared with, by their names in examples' own arrays.
    others = ("old",)
    # The metrics that only one of the methods has.
    own_metrics = ()
    # Whether the samples of a prompt are compared with each other, at the same noise and time.
    groups = False
    # The least of the training's times that samples are noised to, as a share of all.
    least_time = 0.0

    @property
    def compared(self) -> tuple[str, ...]:
        """The names of all outputs that the denoiser's is compared with."""
        base = ("base",) if self.reference_weight and "base" not in self.others else ()
        return (*self.others, *base)

    @property
    def metrics(self) -> Mapping[str, str]:
        """How the values of several samples become one, for each metric; see `Objective`."""
        distances = map(_distance_to, self.compared)
        return dict.fromkeys(("matching_error", *distances, *self.own_metrics), "mean")

    def reference_factor(self, example: Examples) -> float | jax.Array:
        """Returns the factor of the distance to the base model: one for all, or [B]."""
        return self.reference_weight

    def denoiser(self, name: str, experience: Experience, scored: Scored) -> Parameters:
        """Returns the denoiser's parameters with which one of `compared` is computed."""
        if name == "base":
            assert scored.frozen.base is not None  # `needs` asks for it.
            return scored.frozen.base
        params = scored.params if name == "old" else scored.memory[TRAILING]
        return experience.adaptation.denoiser(params, scored.frozen.base)

    def examples(
        self, experience: Experience, scored: Scored, predict: Callable
    ) -> tuple[Examples, None]:
        """Makes one update for each task and noise, with the others' outputs for the same latents.

        The arguments and the result are those of `Objective.examples`.
        """
        latents, own = self.learned_from(scored)
        examples = noise_anew(
            *(self.process, latents, self.weights, self.seed, scored.step, self.noises),
            places=scored.places,
            sources=own.get("group"),
            times=(self.least_time, 1.0),
        )
        own = examples.own | {name: values[examples.text] for name, values in own.items()}
        output = lambda output, latents, own: guide(output, self.guidance_scale)
        for name in self.compared:
            denoiser = self.denoiser(name, experience, scored)
            own[name] = predict(denoiser, examples, scored.samples.text, output)
        return dataclasses.replace(examples, own=own), None

    def learned_from(self, scored: Scored) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Chooses the sample that each place of the batch has, and says what the loss takes of it.

        Returns:
          The samples' final latents, float32 [T, B, ...], and by name what `loss` finds in
          examples' own arrays, [T, B] each. Places with one number in "group", which is the place
          in [T * B] of the first of them, share their noise and their time.
        """
        latents, most = scored.samples.latents, self.most_advantage
        assert latents is not None  # `needs` asks for them.
        own = {"advantages": jnp.clip(scored.advantages, -most, most) / most}
        if self.groups:
            firsts = draws.first_of_group(self.group_sizes, latents.shape[1])
            own |= {"group": firsts, "valid": jnp.isfinite(scored.rewards)}
        return latents, own

    def __call__(
        self, output: jax.Array, example: Examples, active: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Computes the method's loss with the distance to the base model.

        The arguments and the result are those of `Objective.__call__`.
        """
        output = guide(output, self.guidance_scale)
        error = mean_square(output - example.own["target"])
        found = {"matching_error": error}
        for name in self.compared:
            found[_distance_to(name)] = mean_square(output - example.own[name])
        loss, said = self.loss(output, error, example, active, found)
        if self.reference_weight:
            loss += self.reference_factor(example) * found["distance_to_base"]
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
        """Averages the loss, the gradient's norm and the metrics; see `means_by_task`."""
        return means_by_task(values, task_names, ("loss", "gradient_norm", *self.metrics))


@dataclasses.dataclass(frozen=True, eq=False)
class DiffusionNFT(ForwardProcess):
    """The negative-aware loss of a good and a bad policy, made from the old and the current one.

    With outputs v of the current denoiser and v_old of the one that drew the samples, the good
    policy's output is (1 - beta) v_old + beta v, and the bad one's (1 + beta) v_old - beta v. The
    loss is p L(good) + (1 - p) L(bad) with p = (1 + advantage) / 2. L is the mean squared error of
    the clean latents divided by their mean absolute error, which has no gradient. For a denoiser
    that predicts noise, a small change of its output near the end of the noising is a large one of
    the clean latents, so that the two policies' difference from the old one outweighs the rewards
    there; `error` "output" takes the denoiser's outputs in their place. The paper's loss
    is this one times its largest advantage over beta; the weight of the base model is therefore
    multiplied by the inverse.

    Attributes:
      beta: how far the two policies are from the old one.
      error: what the errors are of, one of `ERRORS`.
    """

    beta: float = 1.0
    error: str = ERRORS[0]

    def reference_factor(self, example):
        """Returns the factor of the distance to the base model, on the scale of this loss."""
        return self.reference_weight * self.beta / self.most_advantage

    def loss(self, output, error, example, active, found):
        """Computes the paper's loss times beta / most_advantage.

        The arguments and the result are those of `ForwardProcess.loss`.
        """
        own = example.own
        if self.error == "clean":
            view = lambda output: self.process.clean(output, example.latents, example.times)
        else:
            view = lambda output: output
        old = view(own["old"])
        change = self.beta * (view(output) - old)
        losses = []
        for sign in (1, -1):
            # The target is the output that means the sample's own latents.
            off = old + sign * change - view(own["target"])
            losses.append(relative_error(off))
        share = (1 + own["advantages"]) / 2
        return share * losses[0] + (1 - share) * losses[1], {}


@dataclasses.dataclass(frozen=True, eq=False)
class AdvantageWeighted(ForwardProcess):
    """Advantage weighted matching: a clipped policy gradient with -error as log-probability.

    For models of flow matching the published configs weigh errors: the log-probability is minus the
    time, times the error's fourth root, times four.

    Attributes:
      weighting: "auto" is that for models of flow matching; "none" takes errors as they are, as
        "auto" does for others.
      clip_range: how far the ratio may leave 1.
      trailing_weight: the factor of the mean squared difference between the denoiser's output and
        that of an average of its parameters that trails it.
    """

    weighting: str = "none"
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
        before = jnp.where(active, mean_square(own["old"] - own["target"]), 1)
        error = jnp.where(active, error, 1)
        if self.weighting == "auto" and isinstance(self.process, RectifiedFlow):
            weighed = lambda error: example.times * jnp.power(error + TINY, POWER) / POWER
            before, error = weighed(before), weighed(error)
        log_ratio = before - error
        surrogate = clipped_surrogate(log_ratio, own["advantages"], self.clip_range)
        loss = surrogate.loss + self.trailing_weight * found["distance_to_trailing"]
        return loss, {"ratio": jnp.exp(log_ratio), "clip_fraction": surrogate.clipped}


@dataclasses.dataclass(frozen=True, eq=False)
class GroupPreference(ForwardProcess):
    """Direct group preference optimisation (2510.08425): advantage times error, weighed by group.

    A group's weight, which has no gradient, is the sigmoid of beta times the mean over the group of
    advantage times how much larger the error is than the base model's. A sample whose ratio has
    left 1 by more than `clip_range`, in the direction of its advantage, has no gradient. Advantages
    are taken less the mean of their group, however they are normalised: theirs sum to 0.

    Attributes:
      beta: how fast a group's weight falls once its preference is learned.
      clip_range: how far the ratio exp(error of the trailing average - error) may leave 1.
      least_time: the least of the training's times that samples are noised to, as a share of all:
        what few steps draw is faulty where there is little noise, and is not learned.
    """

    beta: float = 100.0
    clip_range: float = 1e-2
    least_time: float = 0.0

    others = ("base", "trailing")
    own_metrics = ("ratio", "clip_fraction", "group_weight")
    groups = True

    def loss(self, output, error, example, active, found):
        """Computes Eq. 11 of 2510.08425.

        The arguments and the result are those of `ForwardProcess.loss`.
        """
        own = example.own
        error_of = lambda name: mean_square(own[name] - own["target"])
        group = own["group"]
        better = centred(own["advantages"] * self.most_advantage, own["valid"], group)
        change = jnp.where(active, jax.lax.stop_gradient(error) - error_of("base"), 0)
        size = of_group(jnp.ones_like(error), group)
        weight = jax.nn.sigmoid(self.beta * of_group(better * change, group) / size)
        ratio = jnp.exp(jnp.where(active, error_of("trailing") - jax.lax.stop_gradient(error), 0))
        clipped = jnp.where(better > 0, ratio > 1 + self.clip_range, ratio < 1 - self.clip_range)
        error = jnp.where(clipped, jax.lax.stop_gradient(error), error)
        said = {"ratio": ratio, "clip_fraction": clipped, "group_weight": weight}
        said = {name: values.astype(jnp.float32) for name, values in said.items()}
        return weight * better * error, said


class Method(NamedTuple):
    """A method of this module, as `ALGORITHMS` holds it.

    Attributes:
      name: the name of its fields in `config.algorithm`.
      objective: the class of its objective.
      follower: the name of the average of the parameters that the state's memory keeps; None if it
        keeps none.
    """

    name: str
    objective: type[ForwardProcess]
    follower: str | None = None

    def needs(self, fields: Config) -> Needs:
        """Returns what the method needs, from its fields in `config.algorithm`."""
        others = {*self.objective.others} | ({"base"} if fields.reference_weight else set())
        return Needs(
            updates=fields.noises,
            latents=True,
            base="base" in others,
            follower=self.follower,
            kept_of_example=1 + len(others),
            predictions=len(others),
            groups=self.objective.groups,
        )

    def check(self, config: Config) -> None:
        """Refuses a config that does not fit the method.

        Raises:
          UserError: the images of a prompt are compared, and a task has one image of each.
        """
        alone = [name for name, task in config.tasks.items() if task.group_size < 2]
        if self.objective.groups and alone:
            raise UserError(
                f"The method {self.name} compares the images of a prompt: set the group_size of "
                f"task {alone[0]} to 2 or more."
            )

    def make(self, config: Config, process: Process) -> ForwardProcess:
        """Makes the objective that a config describes, for the process that draws its samples."""
        fields, tasks = dict(config.algorithm[self.name]), config.tasks.values()
        if self.follower:  # The learner's.
            del fields["first_decay"], fields["decay_rate"], fields["largest_decay"]
        return self.objective(
            process=process,
            seed=config.seed,
            guidance_scale=config.sampler.guidance_scale,
            weights=tuple(task.weight for task in tasks),
            group_sizes=tuple(task.group_size for task in tasks),
            **fields,
        )


NFT = Method("nft", DiffusionNFT, DRAWING)
AWM = Method("awm", AdvantageWeighted, TRAILING)
DGPO = Method("dgpo", GroupPreference, TRAILING)
