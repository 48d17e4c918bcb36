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

from diffusionrl_jax.algorithms.losses import clipped_surrogate
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.gaussian import Gaussian
from diffusionrl_jax.diffusion.guidance import guide
from diffusionrl_jax.diffusion.process import Process, sensitivity
from diffusionrl_jax.learning.algorithm import Needs
from diffusionrl_jax.learning.examples import Examples
from diffusionrl_jax.learning.experience import Experience
from diffusionrl_jax.learning.objectives import Metrics, Scored
from diffusionrl_jax.learning.summary import means_by_task


def needs(fields: Config) -> Needs:
    """Returns what the method needs, from the fields of `config.algorithm.policy_gradient`."""
    count = fields.timesteps_per_iteration
    near = fields.kl_weight > 0
    return Needs(count, steps=count, base=near, kept_of_example=1 + near, predictions=int(near))


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
    """

    process: Process
    eta: float
    guidance_scale: float
    weights: tuple[float, ...]
    clip_range: float
    balance_timesteps: bool = False
    kl_weight: float = 0.0

    @property
    def metrics(self) -> Mapping[str, str]:
        """How the values of several samples become one, for each metric; see `Objective`."""
        means = ("ratio", "ratio_error", "clip_fraction", "approximate_kl")
        means += ("kl_to_base",) if self.kl_weight else ()
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

        The arguments and the result are those of `Objective.examples`.
        """
        _, trained = experience.trained_steps(scored.step, scored.advantages.shape[1])
        tasks, size, count = trained.shape

        def by_update(array):
            """Reorders [T, B, K, ...] to [T * K, B, ...]."""
            return jnp.moveaxis(array, 2, 1).reshape(tasks * count, size, *array.shape[3:])

        steps, task = scored.samples.steps, jnp.repeat(jnp.arange(tasks), count)
        step_index = by_update(trained)
        examples = Examples(
            latents=by_update(steps.latents),
            times=self.process.times[step_index],
            text=task,
            weight=jnp.asarray(self.weights, jnp.float32)[task],
            objective=jnp.zeros_like(task),
            own={
                "target": by_update(steps.following),
                "step_index": step_index,
                "old_log_prob": by_update(steps.log_probs),
                "advantages": scored.advantages[task],
            },
        )
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
        own = example.own
        step = self.step(output, example.latents, own["step_index"])
        # There is no ratio for others' examples: an overflow there would poison the gradient.
        log_ratio = jnp.where(active, step.log_prob(own["target"]) - own["old_log_prob"], 0)
        compared = log_ratio
        if self.balance_timesteps:
            compared /= sensitivity(self.process, self.eta)[own["step_index"]]
        surrogate = clipped_surrogate(compared, own["advantages"], self.clip_range)
        loss, to_base = surrogate.loss, {}
        if self.kl_weight:
            divergence = step.kl_to(jnp.where(active, own["reference_mean"], step.mean))
            loss += self.kl_weight * divergence
            to_base = {"kl_to_base": divergence}
        ratio_error = jnp.abs(jnp.expm1(log_ratio))
        return loss, to_base | {
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
