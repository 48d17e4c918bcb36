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

from diffusionrl_jax.diffusion.gaussian import Gaussian, keep_variance, per_sample
from diffusionrl_jax.models.flow_schedulers import check_flow_scheduler, with_flow_defaults

# How noise is added; see `RectifiedFlow.step`.
NOISE_RULES = ("eta", "cps", "sde")
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
    """

    levels: jax.Array
    unit_std: jax.Array
    stochastic_steps: int = flax.struct.field(pytree_node=False)
    rule: str = flax.struct.field(pytree_node=False)

    @property
    def steps(self) -> int:
        """S, the number of denoising steps."""
        return self.levels.shape[0] - 1

    @property
    def times(self) -> jax.Array:
        """The time from which each step is taken, float32 [S] in (0, 1]."""
        return self.levels[:-1]

    def draw_time(self, key: jax.Array, least: float = 0.0, most: float = 1.0) -> jax.Array:
        """Draws a time, float32 scalar, all with the same probability.

        The arguments are those of `Process.draw_time`.
        """
        return jax.random.uniform(key, minval=least, maxval=most)

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
          next step, and the last step has no noise, as in the released code.

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
    return jnp.sin(eta * (math.pi / 2)) if rule == "cps" else eta


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


def _shifted(levels, shift: float):
    """Returns times moved towards 1 if the shift is above 1 (2403.03206, Eq. 23)."""
    return shift * levels / (1 + (shift - 1) * levels)


def _shift(config: Mapping[str, Any]) -> float:
    """Returns how far the chain's times are shifted.

    Args:
      config: a scheduler's config that lacks no field; see `flow_schedulers.with_flow_defaults`.
    """
    if not config["use_dynamic_shifting"]:
        return config["shift"]
    base, largest = config["base_image_seq_len"], config["max_image_seq_len"]
    share = (config["image_tokens"] - base) / (largest - base)
    mu = config["base_shift"] + share * (config["max_shift"] - config["base_shift"])
    return math.exp(mu) if config["time_shift_type"] == "exponential" else mu


def _levels(config: Mapping[str, Any], steps: int) -> np.ndarray:
    """Returns the times that diffusers' chain visits, float64 [steps + 1], down to 0."""
    shift = _shift(config)
    if config["timestep_spacing"] == "trailing":
        levels = np.linspace(1, 1 / steps, steps)
    else:
        least = 1 / config["num_train_timesteps"]
        # The scheduler shifts its least time when it is made, and then again with all others.
        least = least if config["use_dynamic_shifting"] else _shifted(least, shift)
        levels = np.linspace(1, least, steps)
    levels = _shifted(levels, shift)
    if config["shift_terminal"] and steps > 1:
        levels = 1 - (1 - levels) * (1 - config["shift_terminal"]) / (1 - levels[-1])
    return np.append(levels, 0)


def make_flow(
    scheduler_config: Mapping[str, Any], steps: int, *, noise: str = "eta", eta: float = 1.0
) -> RectifiedFlow:
    """Builds the chain that diffusers' `FlowMatchEulerDiscreteScheduler` walks.

    Args:
      scheduler_config: the contents of the folder's scheduler_config.json. Two fields may be added
        by the model's family: "image_tokens", how many tokens an image has, is needed if
        "use_dynamic_shifting" is true, and "timestep_spacing" is "trailing" if the pipeline has the
        chain visit 1, 1 - 1 / steps, ..., 1 / steps before the shift, as FLUX's does.
      steps: the number of denoising steps.
      noise: how noise is added, one of `NOISE_RULES`.
      eta: how much noise the steps add where they are trained on; see `RectifiedFlow.step`.

    Raises:
      UserError: the config asks for something that this chain would get wrong.
    """
    check_flow_scheduler(scheduler_config)
    levels = _levels(with_flow_defaults(scheduler_config), steps)
    unit_std = _unit_std(noise, levels)
    trained = float(_strength(noise, eta)) * unit_std > LEAST_TRAINED_STD
    return RectifiedFlow(
        levels=jnp.asarray(levels, jnp.float32),
        unit_std=jnp.asarray(unit_std, jnp.float32),
        stochastic_steps=int(np.append(trained, False).argmin()),
        rule=noise,
    )
