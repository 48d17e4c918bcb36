"""Rectified flow (2209.03003): the chain of models that predict noise minus picture.

A picture x_0 and noise e are joined by a straight line, x_t = (1 - t) x_0 + t e, with t from 0 to
1, and the network predicts its direction v = e - x_0. The chain walks from t = 1 to t = 0 at the
times of PyTorch diffusers' FlowMatchEulerDiscreteScheduler.
"""

import math
from collections.abc import Mapping
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logit, ndtr, ndtri

from diffusionrl_jax.diffusion.flow_times import (
    euler_times,
    extrapolation,
    shift_of,
    shifted,
    solver_times,
)
from diffusionrl_jax.diffusion.gaussian import Gaussian, keep_variance, per_sample
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.flow_schedulers import check_flow_scheduler, with_flow_defaults

# How noise is added; see `RectifiedFlow.step`.
NOISE_RULES = ("eta", "cps", "sde")
# How the times are drawn that the network is trained at; see `RectifiedFlow.draw_time`.
TRAINING_TIMES = ("logit_normal", "uniform", "steps")
# A step with a smaller standard deviation is not trained on: its log-probability moves so much more
# with the network's output than that of others that these would count for nothing beside it.
LEAST_TRAINED_STD = 0.05


@flax.struct.dataclass
class RectifiedFlow:
    """A chain of S denoising steps, first step first: a `Process`.

    Attributes:
      levels: the times that the chain visits, which are also the standard deviations of the noise
        there, float32 [S + 1], descending from 1 to 0.
      unit_std: each step's standard deviation for the largest eta, which is 1, float32 [S].
      stochastic_steps: how many steps, from the first, have so much noise, with the eta that the
        chain was made for, that they can be trained on: a standard deviation above
        `LEAST_TRAINED_STD`.
      rule: how noise is added, one of `NOISE_RULES`.
      shift: how far the times are shifted towards 1, where 1 is not at all.
      training_times: how `draw_time` draws them, one of `TRAINING_TIMES`.
      extrapolation: for a chain of second order, which has no noise, how far each step extrapolates
        the clean latents, float32 [S], from `flow_times.extrapolation`; None is first order.
    """

    levels: jax.Array
    unit_std: jax.Array
    stochastic_steps: int = flax.struct.field(pytree_node=False)
    rule: str = flax.struct.field(pytree_node=False)
    shift: float = flax.struct.field(pytree_node=False)
    training_times: str = flax.struct.field(pytree_node=False)
    extrapolation: jax.Array | None = None

    @property
    def steps(self) -> int:
        """S, the number of denoising steps."""
        return self.levels.shape[0] - 1

    @property
    def times(self) -> jax.Array:
        """The time from which each step is taken, float32 [S] in (0, 1]."""
        return self.levels[:-1]

    def draw_time(self, key: jax.Array, least: float = 0.0, most: float = 1.0) -> jax.Array:
        """Draws a time, float32 scalar, that is shifted as those of the chain are.

        Before the shift, all times have the same probability, or their logit is standard normal, as
        in the training of Stable Diffusion 3 (2403.03206, Eq. 19), if `training_times` is
        "logit_normal". If it is "steps", the time is one of the chain's own, as in the released
        code of methods that learn on the forward process: any within the bounds, or the nearest.

        Args:
          key: a PRNG key.
          least, most: the bounds between which the time lies.
        """
        if self.training_times == "steps":
            outside = jnp.maximum(jnp.maximum(least - self.times, self.times - most), 0)
            allowed = outside == outside.min()
            return jax.random.choice(key, self.times, p=allowed / allowed.sum())
        first, last = (jnp.float32(shifted(bound, 1 / self.shift)) for bound in (least, most))
        if self.training_times == "uniform":
            return shifted(jax.random.uniform(key, minval=first, maxval=last), self.shift)
        first, last = ndtr(logit(first)), ndtr(logit(last))
        drawn = ndtri(jax.random.uniform(key, minval=first, maxval=last))
        return shifted(jax.nn.sigmoid(drawn), self.shift)

    def noise(self, clean: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
        """Moves clean latents towards noise, along a straight line.

        Args:
          clean: the clean latents, float32 [batch, ...].
          noise: standard normal numbers of the same shape.
          times: the times, float32 [batch] in [0, 1].

        Returns:
          The noisy latents, float32 of clean's shape.
        """
        chex.assert_equal_shape([clean, noise])
        times = per_sample(times, clean)
        return (1 - times) * clean + times * noise

    def target(self, clean: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
        """Returns what the network should predict, the line's direction.

        Arguments and result have the shapes of those of `noise`.
        """
        return noise - clean

    def clean(self, output: jax.Array, latents: jax.Array, times: jax.Array) -> jax.Array:
        """Returns the network's guess of the clean latents.

        Args:
          output: what the network predicts, float32 [batch, ...].
          latents: what it was shown, of the same shape.
          times: the times, float32 [batch].

        Returns:
          float32, of the latents' shape.
        """
        return latents - per_sample(times, latents) * output

    def second_order(
        self, output: jax.Array, clean: jax.Array, step_index: jax.Array, before: jax.Array
    ) -> jax.Array:
        """Returns the output with which a step without noise is of second order, DPM-Solver++(2M).

        It takes the guess of the clean latents to change as it has changed since the step before.

        Args:
          output: the network's prediction, guided, float32 [batch, ...].
          clean: the guess that it implies, of the same shape.
          step_index: each sample's position in the chain, int32 [batch].
          before: the guess in the step before, of the same shape; anything in the first step.
        """
        assert self.extrapolation is not None  # The chain was made for it.
        factor = per_sample(self.extrapolation[step_index] / self.levels[step_index], output)
        return output - factor * (clean - before)

    def step(
        self,
        output: jax.Array,
        latents: jax.Array,
        step_index: jax.Array,
        eta: float | jax.Array,
    ) -> Gaussian:
        """Returns the distribution of the latents at time s, after a step from time t.

        With eta 0 it is the Euler step of the flow's ODE. Else, by the chain's rule:
        - "eta" keeps the marginal distributions as steps grow. It is DDIM's Eq. 12 (2010.02502)
          with this process' coefficients: eta 1 has the variance of the posterior of the step.
        - "cps" is Flow-CPS (2509.05952): the standard deviation is s sin(eta pi / 2). Each step
          keeps the level of the noise, but not the marginal distribution, however many steps.
        - "sde" is Flow-GRPO (2505.05470), Eq. 9: the Euler step of an SDE that has the flow's
          marginal distributions, with g = eta sqrt(t / (1 - t)). At t = 1, its 1 - t is that of the
          next step, and the last step has no noise. The released code adds noise there, too, but
          does not train on it.

        Args:
          output: the network's prediction, guided, float32 [batch, ...].
          latents: the latents at time t, of the same shape.
          step_index: each sample's position in the chain, int32 [batch]; 0 is the noisiest step.
          eta: how much noise is added, from 0 to 1; one number, or float32 [batch].

        Returns:
          The distribution, with a standard deviation of 0 in the last step.
        """
        chex.assert_equal_shape([output, latents])
        chex.assert_shape(step_index, (latents.shape[0],))
        time = per_sample(self.levels[step_index], latents)
        following = per_sample(self.levels[step_index + 1], latents)
        std = per_sample(_strength(self.rule, eta) * self.unit_std[step_index], latents)
        clean, noise = latents - time * output, latents + (1 - time) * output
        if self.rule == "sde":
            # The score of x_t is -e / t.
            level = following - jnp.square(std) / (2 * time)
            return Gaussian((1 - following) * clean + level * noise, std)
        return keep_variance(clean, noise, 1 - following, jnp.square(following), std)


def _strength(rule: str, eta: float | jax.Array) -> float | jax.Array:
    """Returns what a step's largest standard deviation is multiplied by."""
    return jnp.sin(jnp.float32(eta) * (math.pi / 2)) if rule == "cps" else eta


def _unit_std(rule: str, levels: np.ndarray) -> np.ndarray:
    """Returns each step's standard deviation for eta 1, float64 [S], from the chain's levels."""
    time, following = levels[:-1], levels[1:]
    if rule == "cps":
        return following
    if rule == "eta":
        kept = (1 - time) * following / ((1 - following) * time)
        return following * np.sqrt(1 - np.square(kept))
    clean = np.where(time == 1, 1 - following, 1 - time)
    std = np.sqrt(time / clean * (time - following))
    return np.where(following > 0, std, 0)


def make_flow(
    scheduler_config: Mapping[str, Any],
    steps: int,
    *,
    noise: str = "eta",
    eta: float = 1.0,
    order: int = 1,
    training_times: str = "logit_normal",
) -> RectifiedFlow:
    """Builds the chain that diffusers' `FlowMatchEulerDiscreteScheduler` walks.

    Of second order, it is that of `DPMSolverMultistepScheduler`, at times that are not rounded.

    Args:
      scheduler_config: the contents of the folder's scheduler_config.json. Two fields may be added
        by the model's family: "image_tokens", how many tokens an image has, is needed if
        "use_dynamic_shifting" is true, and "timestep_spacing" is "trailing" if the pipeline has the
        chain visit 1, 1 - 1 / steps, ..., 1 / steps before the shift, as FLUX's does.
      steps: the number of denoising steps.
      noise: how noise is added, one of `NOISE_RULES`.
      eta: how much noise the steps add where they are trained on; see `RectifiedFlow.step`.
      order: the order of the steps: 2 is DPM-Solver++(2M), for a chain without noise.
      training_times: how the times are drawn that the network is trained at, one of
        `TRAINING_TIMES`; see `RectifiedFlow.draw_time`.

    Returns:
      The chain.

    Raises:
      UserError: the config asks for something that this chain would get wrong, or a chain of second
        order for noise.
    """
    check_flow_scheduler(scheduler_config)
    if order == 2 and eta:
        raise UserError(
            "config.sampler.order=2 is for chains without noise: set config.sampler.eta to 0, or "
            "order to 1."
        )
    config = with_flow_defaults(scheduler_config)
    levels = solver_times(config, steps) if order == 2 else euler_times(config, steps)
    unit_std = _unit_std(noise, levels)
    trained = np.asarray(_strength(noise, eta)) * unit_std > LEAST_TRAINED_STD
    return RectifiedFlow(
        levels=jnp.asarray(levels, jnp.float32),
        unit_std=jnp.asarray(unit_std, jnp.float32),
        stochastic_steps=int(np.append(trained, False).argmin()),
        rule=noise,
        shift=shift_of(config),
        training_times=training_times,
        extrapolation=jnp.float32(extrapolation(levels)) if order == 2 else None,
    )
