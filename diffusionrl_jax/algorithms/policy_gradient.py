"""Policy gradient on the denoising chain: Algorithm 1 of the paper; DDPO (2305.13301); DPOK.

A step of the chain is an action whose distribution is known. Each sample is trained at K steps of
its chain. What is maximised at a step is the product of two numbers, which is clipped: the ratio,
how much likelier the step has become since it was taken, and the advantage, how much better than
expected the sample's picture is.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.algorithms.losses import clipped_surrogate, masked_surrogate
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.gaussian import Gaussian
from diffusionrl_jax.diffusion.guidance import guide
from diffusionrl_jax.diffusion.process import Process, sensitivity
from diffusionrl_jax.learning.algorithm import Needs
from diffusionrl_jax.learning.examples import Examples, by_update, of_steps
from diffusionrl_jax.learning.experience import Experience
from diffusionrl_jax.learning.objectives import Metrics, Scored
from diffusionrl_jax.learning.summary import means_by_task
from diffusionrl_jax.mistakes import UserError

# What each sample of a group has for itself.
OF_SAMPLES = ("target", "old_log_prob", "advantages")


def needs(fields: Config) -> Needs:
    """Returns what the method needs, from the fields of `config.algorithm.policy_gradient`."""
    count = fields.timesteps_per_iteration
    near = fields.kl_weight > 0
    kept = 1 + near + (fields.remove_ratio_bias or fields.most_divergence > 0)
    return Needs(
        count,
        steps=count,
        base=near,
        kept_of_example=kept,
        predictions=int(near),
        groups=fields.shared_prefix > 0,
        branches=fields.shared_prefix,
    )


def check(config: Config) -> None:
    """Refuses a config whose chain has no policy, or of which nothing is trained.

    Raises:
      UserError: a field does not fit; it names it.
    """
    method, name = config.algorithm.policy_gradient, "config.algorithm.policy_gradient"
    count, weight = method.timesteps_per_iteration, method.kl_weight
    if count > config.sampler.steps:
        raise UserError(
            f"{name}.timesteps_per_iteration={count} must be between 0 and "
            f"config.sampler.steps={config.sampler.steps}."
        )
    if not config.sampler.eta:
        raise UserError("config.sampler.eta must be above 0: without noise there is no policy.")
    if not (count or config.pretraining.weight):
        raise UserError(
            f"Nothing is trained: {name}.timesteps_per_iteration and config.pretraining.weight are "
            "both 0."
        )
    if weight and not count:
        raise UserError(
            f"{name}.kl_weight={weight} is of no effect with timesteps_per_iteration=0: the KL is "
            "taken at the steps that are trained on."
        )


def make(config: Config, process: Process) -> "PolicyGradient":
    """Makes the objective that a config describes, for the process that draws its samples."""
    fields = config.algorithm.policy_gradient
    return PolicyGradient(
        process=process,
        eta=config.sampler.eta,
        guidance_scale=config.sampler.guidance_scale,
        weights=tuple(task.weight for task in config.tasks.values()),
        clip_range=fields.clip_range,
        balance_timesteps=fields.balance_timesteps,
        kl_weight=fields.kl_weight,
        remove_ratio_bias=fields.remove_ratio_bias,
        most_divergence=fields.most_divergence,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class PolicyGradient:
    """The `Objective` of the clipped surrogate loss, and of a KL divergence from the base model.

    Attributes:
      process: the chain, whose steps are the actions.
      eta: how much noise the chain's steps add, as in `rollout`.
      guidance_scale: the scale of classifier-free guidance in the chain.
      weights: for each task, the factor of its loss.
      clip_range: how far the ratio may leave 1.
      balance_timesteps: whether each step's log-ratio is divided by its `sensitivity` before it is
        clipped.
      kl_weight: the factor of the KL divergence from the base model at the steps trained on; 0
        leaves it out.
      remove_ratio_bias: whether the mean of the log-ratio under the policy that took the steps,
        which is minus the divergence from it, is taken out before the ratio is clipped (GRPO-Guard,
        2510.22319). What is left is the product of the drawn noise and the mean's movement in
        standard deviations. The rest of the paper's scaling is `balance_timesteps`.
      most_divergence: the KL divergence, in nats per element, from the policy that took a step,
        above which the step is not moved further in the direction of its advantage; it takes the
        place of the clip range (Flow-DPPO, 2606.11025). 0 clips.
    """

    process: Process
    eta: float
    guidance_scale: float
    weights: tuple[float, ...]
    clip_range: float
    balance_timesteps: bool = False
    kl_weight: float = 0.0
    remove_ratio_bias: bool = False
    most_divergence: float = 0.0

    @property
    def compares_means(self) -> bool:
        """Whether the means of the steps that were taken are needed."""
        return self.remove_ratio_bias or self.most_divergence > 0

    @property
    def metrics(self) -> Mapping[str, str]:
        """How the values of several samples become one, for each metric; see `Objective`."""
        means = ("ratio", "ratio_error", "clip_fraction", "approximate_kl")
        means += ("kl_to_base",) if self.kl_weight else ()
        means += ("kl_to_old",) if self.compares_means else ()
        return dict.fromkeys(means, "mean") | {"largest_ratio_error": "max"}

    def step(self, output: jax.Array, latents: jax.Array, step_index: jax.Array) -> Gaussian:
        """Returns the distribution of the latents after a step of the chain.

        Args:
          output: the denoiser's output, float32 [B, P, ...].
          latents: the latents before the step, float32 [B, ...].
          step_index: the step's position in the chain, int32 [B].
        """
        return self.process.step(guide(output, self.guidance_scale), latents, step_index, self.eta)

    def examples(
        self, experience: Experience, scored: Scored, predict: Callable
    ) -> tuple[Examples, None]:
        """Makes one update per task and trained step, one task after another (Algorithm 1).

        Where groups branch, what the denoiser is shown is a group's.

        The arguments and the result are those of `Objective.examples`.
        """
        firsts, of_all = experience.trained_steps(scored.step, scored.advantages.shape[1])
        trained = scored.own(of_all)
        steps, group = scored.samples.steps, experience.group
        assert steps is not None  # `needs` asks for them.
        # Groups that share what they are trained on are rows, in which the first sample stands.
        examples = of_steps(self.process, steps.latents, trained[:, ::group], self.weights)
        advantages = scored.advantages[examples.text]
        own = {
            "target": by_update(steps.following),
            "old_log_prob": by_update(steps.log_probs),
            "advantages": advantages
            if group == 1
            else advantages.reshape(*advantages.shape[:-1], -1, group),
        }
        if self.compares_means:
            noise = scored.own(experience.noise_of_steps(scored.step, firsts, of_all))
            noise = by_update(noise[:, ::group])
            target = own["target"] if group == 1 else own["target"][:, :, 0]
            taken = jax.vmap(self.process.step, (0, 0, 0, None))
            # Only the mean depends on the denoiser's output.
            arguments = examples.latents, examples.own["step_index"], self.eta
            own["old_mean"] = target - taken(jnp.zeros_like(noise), *arguments).std * noise
        examples = dataclasses.replace(examples, own={**examples.own, **own}, group=group)
        if self.kl_weight:
            mean = lambda output, latents, own: self.step(output, latents, own["step_index"]).mean
            reference = predict(scored.frozen.base, examples, scored.samples.text, mean)
            examples = dataclasses.replace(
                examples, own={**examples.own, "reference_mean": reference}
            )
        return examples, None

    def __call__(
        self, output: jax.Array, example: Examples, active: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Computes Eq. 7 of each sample, and the KL from the base model (DPOK, 2305.16381).

        The arguments and the result are those of `Objective.__call__`.
        """
        step = self.step(output, example.latents, example.own["step_index"])
        step, own = _of_samples(step, example)
        # There is no ratio for others' examples, and for steps that were not finite: an overflow
        # there would poison the gradient.
        taken = active & jnp.isfinite(own["old_log_prob"])
        log_ratio = jnp.where(taken, step.log_prob(own["target"]) - own["old_log_prob"], 0)
        compared, advantages, distances = log_ratio, own["advantages"], {}
        to = lambda name: step.kl_to(jnp.where(active, own[name], step.mean))
        if self.compares_means:
            distances["kl_to_old"] = to("old_mean")
        if self.remove_ratio_bias:
            compared += distances["kl_to_old"]
        if self.balance_timesteps:
            compared /= sensitivity(self.process, self.eta)[own["step_index"]]
        if most := self.most_divergence:
            surrogate = masked_surrogate(compared, advantages, distances["kl_to_old"], most)
        else:
            surrogate = clipped_surrogate(compared, advantages, self.clip_range)
        loss = surrogate.loss
        if self.kl_weight:
            distances["kl_to_base"] = to("reference_mean")
            loss += self.kl_weight * distances["kl_to_base"]
        ratio_error = jnp.abs(jnp.expm1(log_ratio))
        return loss, distances | {
            "ratio": jnp.exp(log_ratio),
            "ratio_error": ratio_error,
            "largest_ratio_error": ratio_error,
            "clip_fraction": surrogate.clipped,
            "approximate_kl": 0.5 * jnp.square(log_ratio),
        }

    def summary(
        self, values: Mapping[str, np.ndarray], task_names: Sequence[str]
    ) -> dict[str, float]:
        """Averages the metrics over each task's updates.

        Of the first update, before which the iteration has changed no parameter, it also takes
        |ratio - 1|. This is 0 but for rounding, unless the samples were drawn ahead.

        Returns:
          "<task>/<metric>" for each task and metric, and "ratio_check/mean" and "ratio_check/max".
        """
        of_task = ["loss", "gradient_norm", *self.metrics]
        of_task = [name for name in of_task if name not in ("ratio_error", "largest_ratio_error")]
        found = means_by_task(values, task_names, of_task)
        checked = {"mean": values["ratio_error"][0], "max": values["largest_ratio_error"][0]}
        return found | {f"ratio_check/{name}": value for name, value in checked.items()}


def _of_samples(step: Gaussian, example: Examples) -> tuple[Gaussian, Mapping[str, jax.Array]]:
    """Returns each sample's step and fields, of examples whose rows stand for groups.

    Args:
      step: the rows' distributions of the latents after the step.
      example: one slice of the examples along U.
    """
    group, own = example.group, dict(example.own)
    if group == 1:
        return step, own
    each = lambda array: array.reshape(-1, *array.shape[2:])
    rows = lambda array: jnp.repeat(array, group, axis=0)
    return jax.tree.map(rows, step), {
        name: each(array) if name in OF_SAMPLES else rows(array) for name, array in own.items()
    }
