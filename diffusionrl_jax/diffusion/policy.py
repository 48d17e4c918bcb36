"""One denoising step as a Gaussian policy: the action is the next latent (Eqs. 2-5)."""

import chex
import jax
import jax.numpy as jnp

from diffusionrl_jax.diffusion.schedule import Schedule

# A last step may be deterministic: its density is kept finite, and never trained on
# (`Schedule.stochastic_steps`).
MINIMUM_STD = 1e-6


def step_distribution(
    schedule: Schedule,
    model_output: jax.Array,
    latents: jax.Array,
    step_index: jax.Array,
    eta: float,
) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of p(x_{t-1} | x_t, c): DDIM (2010.02502, Eq. 12) with eta.

    Args:
      schedule: the chain.
      model_output: float32 [batch, channels, height, width], the UNet's prediction.
      latents: x_t, of the same shape.
      step_index: int32 [batch], position in the chain; 0 is the noisiest step.
      eta: 0 is deterministic DDIM, 1 has DDPM's variance.

    Returns:
      The mean, of the latents' shape, and the standard deviation, [batch, 1, 1, 1]; float32.
    """
    chex.assert_equal_shape([model_output, latents])
    chex.assert_shape(step_index, (latents.shape[0],))
    shape = (-1, 1, 1, 1)
    alpha_bar = schedule.alpha_bar[step_index].reshape(shape)
    previous = schedule.previous_alpha_bar[step_index].reshape(shape)
    signal, noise_level = jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar)
    if schedule.prediction_type == "epsilon":
        epsilon = model_output
        clean = (latents - noise_level * epsilon) / signal
    else:
        clean = signal * latents - noise_level * model_output
        epsilon = signal * model_output + noise_level * latents
    variance = (1 - previous) / (1 - alpha_bar) * (1 - alpha_bar / previous)
    std = eta * jnp.sqrt(variance)
    # Rounding may take the argument just below zero where the variance is all of 1 - previous.
    direction = jnp.sqrt(jnp.maximum(1 - previous - std**2, 0))
    return jnp.sqrt(previous) * clean + direction * epsilon, std


def sensitivity(schedule: Schedule, eta: float) -> jax.Array:
    """How far the UNet's output moves a step's mean, in that step's standard deviations.

    The log-probability's gradient is proportional to it. With the tiny noise of a last step onto
    timestep 1 it may be 8 times that of all others, whose gradients then drown in that one's.

    Returns:
      float32 [steps]; large, but finite, where a step has no noise.
    """
    shape = (schedule.steps, 1, 1, 1)
    index = jnp.arange(schedule.steps)
    # The mean is linear in the output.
    mean, std = step_distribution(schedule, jnp.ones(shape), jnp.zeros(shape), index, eta)
    return (jnp.abs(mean) / jnp.maximum(std, MINIMUM_STD)).reshape(-1)


def log_prob(sample: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Log-density of the action, averaged (not summed) over the latent's elements, as DDPO does.

    Args:
      sample: float32 [batch, channels, height, width].
      mean: of the same shape.
      std: [batch, 1, 1, 1]; taken to be at least `MINIMUM_STD`.

    Returns:
      float32 [batch], nats per element.
    """
    chex.assert_equal_shape([sample, mean])
    std = jnp.maximum(std, MINIMUM_STD)
    squared = jnp.square((sample - mean) / std)
    elements = -0.5 * squared - jnp.log(std) - 0.5 * jnp.log(2 * jnp.pi)
    return jnp.mean(elements, axis=(1, 2, 3))


def kl_divergence(mean: jax.Array, reference: jax.Array, std: jax.Array) -> jax.Array:
    """KL(p || p_ref) of one step under two policies, averaged (not summed) over its elements.

    Both are Gaussian, with the same standard deviation, so that it is (mean - reference)^2 /
    (2 std^2): DPOK (2305.16381), Sec. 4.2.

    Args:
      mean: float32 [batch, channels, height, width].
      reference: of the same shape.
      std: [batch, 1, 1, 1]; taken to be at least `MINIMUM_STD`.

    Returns:
      float32 [batch], nats per element.
    """
    chex.assert_equal_shape([mean, reference])
    std = jnp.maximum(std, MINIMUM_STD)
    return 0.5 * jnp.mean(jnp.square((mean - reference) / std), axis=(1, 2, 3))


def guide(model_output: jax.Array, guidance_scale: float) -> jax.Array:
    """Classifier-free guidance (2207.12598): moves away from the empty prompt's prediction.

    Args:
      model_output: [batch, passes, ...]: the prompt's prediction and, where passes is 2, the
        empty prompt's.
      guidance_scale: 1 is no guidance.

    Returns:
      [batch, ...].
    """
    if model_output.shape[1] == 1:
        return model_output[:, 0]
    conditional, unconditional = model_output[:, 0], model_output[:, 1]
    return unconditional + guidance_scale * (conditional - unconditional)
