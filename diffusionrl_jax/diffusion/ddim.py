"""DDIM (2010.02502), the chain of models of a beta schedule, as diffusers walks it."""

import math
from collections.abc import Mapping
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.diffusion.gaussian import Gaussian, keep_variance, per_sample
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.schedulers import check_scheduler, with_defaults


@flax.struct.dataclass
class DDIM:
    """A chain of S denoising steps, first step first, within T training timesteps: a `Process`.

    Attributes:
      times: the timesteps of the steps, int32 [S], descending.
      alpha_bar: the cumulative product of 1 - beta at each step's timestep, float32 [S].
      previous_alpha_bar: the same at the timestep that each step leads to, float32 [S].
      training_alpha_bar: the same at each training timestep, float32 [T].
      stochastic_steps: how many steps, from the first, have noise where eta is not 0. These are all
        S, or S - 1 where the last one leads onto alpha_bar = 1 or stays where it is.
      prediction_type: what the network predicts: "epsilon", the noise, "v_prediction", the
        velocity, or "sample", the clean latents. alpha_bar may be 0, where noise alone is denoised,
        only if it does not predict the noise (2305.08891).
      clip_sample_range: a step takes the guess of the clean latents to lie within this distance of
        0; infinity where nothing is clipped.
    """

    times: jax.Array
    alpha_bar: jax.Array
    previous_alpha_bar: jax.Array
    training_alpha_bar: jax.Array
    stochastic_steps: int = flax.struct.field(pytree_node=False)
    prediction_type: str = flax.struct.field(pytree_node=False)
    clip_sample_range: float = flax.struct.field(pytree_node=False, default=math.inf)

    @property
    def steps(self) -> int:
        """S, the number of denoising steps."""
        return self.times.shape[0]

    def draw_time(self, key: jax.Array, least: float = 0.0, most: float = 1.0) -> jax.Array:
        """Draws a training timestep, int32 scalar, all with the same probability.

        The arguments are those of `Process.draw_time`.
        """
        count = len(self.training_alpha_bar)
        first = min(round(least * count), count - 1)
        return jax.random.randint(key, (), first, max(first + 1, round(most * count)))

    def noise(self, clean: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
        """Diffuses clean latents to training timesteps (Eq. 1).

        Args:
          clean: the clean latents, float32 [batch, ...].
          noise: standard normal numbers of the same shape.
          times: the timesteps, int32 [batch] in [0, T).

        Returns:
          The noisy latents, float32 of clean's shape.
        """
        chex.assert_equal_shape([clean, noise])
        alpha_bar = per_sample(self.training_alpha_bar[times], clean)
        return jnp.sqrt(alpha_bar) * clean + jnp.sqrt(1 - alpha_bar) * noise

    def target(self, clean: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
        """Returns what the network should predict: noise, velocity (2202.00512) or clean latents.

        Arguments and result have the shapes of those of `noise`.
        """
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        alpha_bar = per_sample(self.training_alpha_bar[times], clean)
        return jnp.sqrt(alpha_bar) * noise - jnp.sqrt(1 - alpha_bar) * clean

    def clean(self, output: jax.Array, latents: jax.Array, times: jax.Array) -> jax.Array:
        """Returns the network's guess of the clean latents.

        Args:
          output: what the network predicts, float32 [batch, ...].
          latents: what it was shown, of the same shape.
          times: the training timesteps, int32 [batch].

        Returns:
          float32, of the latents' shape.
        """
        alpha_bar = per_sample(self.training_alpha_bar[times], latents)
        return self._clean_and_noise(output, latents, alpha_bar)[0]

    def _clean_and_noise(self, output, latents, alpha_bar):
        """Returns the guess of the clean latents, and of their noise, that an output means."""
        signal, noise_level = jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar)
        if self.prediction_type == "epsilon":
            return (latents - noise_level * output) / signal, output
        if self.prediction_type == "sample":
            return output, (latents - signal * output) / noise_level
        clean = signal * latents - noise_level * output
        return clean, signal * output + noise_level * latents

    def step(
        self,
        output: jax.Array,
        latents: jax.Array,
        step_index: jax.Array,
        eta: float | jax.Array,
    ) -> Gaussian:
        """Returns p(x_{t-1} | x_t, c), by DDIM's Eq. 12 (2010.02502) with eta.

        Args:
          output: the network's prediction, guided, float32 [batch, ...].
          latents: x_t, of the same shape.
          step_index: each sample's position in the chain, int32 [batch]; 0 is the noisiest step.
          eta: how much noise is added: 0 is deterministic DDIM, and 1 has DDPM's variance; one
            number, or float32 [batch].

        Returns:
          The distribution of x_{t-1}.
        """
        chex.assert_equal_shape([output, latents])
        chex.assert_shape(step_index, (latents.shape[0],))
        alpha_bar = per_sample(self.alpha_bar[step_index], latents)
        previous = per_sample(self.previous_alpha_bar[step_index], latents)
        clean, epsilon = self._clean_and_noise(output, latents, alpha_bar)
        if math.isfinite(self.clip_sample_range):
            clean = jnp.clip(clean, -self.clip_sample_range, self.clip_sample_range)
        variance = (1 - previous) / (1 - alpha_bar) * (1 - alpha_bar / previous)
        std = per_sample(eta, latents) * jnp.sqrt(variance)
        return keep_variance(clean, epsilon, jnp.sqrt(previous), 1 - previous, std)


def _alpha_bar(config: Mapping[str, Any]) -> np.ndarray:
    """Returns alpha_bar of each training timestep, float32 [T].

    Args:
      config: a scheduler's config that lacks no field; see `schedulers.with_defaults`.
    """
    start, end, count = (config[name] for name in ("beta_start", "beta_end", "num_train_timesteps"))
    # The checkpoints were trained with betas in float32.
    if config["trained_betas"] is not None:
        betas = np.asarray(config["trained_betas"], np.float32)
    elif config["beta_schedule"] == "squaredcos_cap_v2":
        betas = _cosine_betas(count)
    elif config["beta_schedule"] == "linear":
        betas = np.linspace(start, end, count, dtype=np.float32)
    else:
        betas = np.linspace(start**0.5, end**0.5, count, dtype=np.float32) ** 2
    alpha_bar = np.cumprod(1.0 - betas, dtype=np.float32)
    return _with_zero_at_the_end(alpha_bar) if config["rescale_betas_zero_snr"] else alpha_bar


def _cosine_betas(count: int) -> np.ndarray:
    """Returns the betas of the cosine schedule (2102.09672, Eq. 17), float32 [count].

    They are at most 0.999.
    """
    alpha_bar = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999).astype(np.float32)


def _with_zero_at_the_end(alpha_bar: np.ndarray) -> np.ndarray:
    """Moves the schedule so that noise alone is left at its end (2305.08891, Algorithm 1)."""
    signal = np.sqrt(alpha_bar)
    return np.square((signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1])))


def _timesteps(config: Mapping[str, Any], steps: int, count: int) -> np.ndarray:
    """Returns the timesteps of the steps, int32 [steps], descending."""
    if config["timestep_spacing"] == "leading":
        timesteps = np.arange(steps)[::-1] * (count // steps) + config["steps_offset"]
    elif config["timestep_spacing"] == "trailing":
        # By rounding, some ranges are one too long.
        timesteps = np.round(np.arange(count, 0, -count / steps))[:steps] - 1
    else:
        timesteps = np.linspace(0, count - 1, steps).round()[::-1]
    return timesteps.astype(np.int32)


def make_ddim(scheduler_config: Mapping[str, Any], steps: int) -> DDIM:
    """Builds the chain that diffusers' `DDIMScheduler.set_timesteps(steps)` walks.

    Args:
      scheduler_config: the contents of the folder's scheduler_config.json.
      steps: the number of denoising steps.

    Returns:
      The chain.

    Raises:
      UserError: the config asks for something that this chain would get wrong, `steps` is not
        between 1 and the number of training timesteps, or the first timestep lies beyond these.
    """
    check_scheduler(scheduler_config)
    config = with_defaults(scheduler_config)
    alpha_bar = _alpha_bar(config)
    count = len(alpha_bar)
    if not 1 <= steps <= count:
        raise UserError(f"steps must be between 1 and {count}, not {steps}.")
    timesteps = _timesteps(config, steps, count)
    if timesteps[0] >= count:
        raise UserError(
            f"With {steps} steps the first timestep is {timesteps[0]}, beyond the {count} of "
            "training: use fewer steps, or set the scheduler's steps_offset to 0."
        )
    previous = timesteps - count // steps
    final = 1.0 if config["set_alpha_to_one"] else alpha_bar[0]
    previous_alpha_bar = np.where(previous >= 0, alpha_bar[np.maximum(previous, 0)], final)
    deterministic = previous_alpha_bar[-1] in (1.0, alpha_bar[timesteps[-1]])
    return DDIM(
        times=jnp.asarray(timesteps),
        alpha_bar=jnp.asarray(alpha_bar[timesteps]),
        previous_alpha_bar=jnp.asarray(previous_alpha_bar, jnp.float32),
        training_alpha_bar=jnp.asarray(alpha_bar),
        stochastic_steps=steps - 1 if deterministic else steps,
        prediction_type=config["prediction_type"],
        clip_sample_range=config["clip_sample_range"] if config["clip_sample"] else math.inf,
    )
