"""A denoising step as a policy: the action is the next latent, drawn from a Gaussian (Eqs. 2-5)."""

import chex
import flax.struct
import jax
import jax.numpy as jnp

# The last step may be deterministic. Its density is kept finite, and the step is never trained on
# (`Process.stochastic_steps`).
MINIMUM_STD = 1e-6


@flax.struct.dataclass
class Gaussian:
    """The distribution of the next latents.

    Attributes:
      mean: float32 [batch, ...].
      std: the standard deviation, float32 [batch, 1, ...], with as many axes as the mean. Where it
        is below `MINIMUM_STD`, densities are computed with that instead.
    """

    mean: jax.Array
    std: jax.Array

    def log_prob(self, sample: jax.Array) -> jax.Array:
        """Computes the action's log-density, averaged (not summed) over its elements, as DDPO does.

        Args:
          sample: the action, float32 of the mean's shape.

        Returns:
          float32 [batch], nats per element.
        """
        chex.assert_equal_shape([sample, self.mean])
        std = jnp.maximum(self.std, MINIMUM_STD)
        squared = jnp.square((sample - self.mean) / std)
        elements = -0.5 * squared - jnp.log(std) - 0.5 * jnp.log(2 * jnp.pi)
        return jnp.mean(elements, axis=tuple(range(1, sample.ndim)))

    def kl_to(self, reference_mean: jax.Array) -> jax.Array:
        """Computes KL(p || p_ref) of a step, averaged (not summed) over its elements.

        Both policies have the same standard deviation, so that it is (mean - reference)^2 / (2
        std^2): DPOK (2305.16381), Sec. 4.2.

        Args:
          reference_mean: the reference policy's mean, float32 of the mean's shape.

        Returns:
          float32 [batch], nats per element.
        """
        chex.assert_equal_shape([self.mean, reference_mean])
        std = jnp.maximum(self.std, MINIMUM_STD)
        squared = jnp.square((self.mean - reference_mean) / std)
        return 0.5 * jnp.mean(squared, axis=tuple(range(1, squared.ndim)))


def keep_variance(
    clean: jax.Array, noise: jax.Array, signal: jax.Array, variance: jax.Array, std: jax.Array
) -> Gaussian:
    """Returns the latents after a step that keeps the level of their noise, DDIM's Eq. 12.

    They are signal * clean + sqrt(variance - std^2) * noise, to which noise of that standard
    deviation is added anew. DDIM (2010.02502) and Flow-CPS (2509.05952) differ in std alone.

    Args:
      clean: the guess of the clean latents, float32 [batch, ...].
      noise: the guess of their noise, of the same shape.
      signal: the factor of the clean latents after the step, float32 [batch, 1, ...].
      variance: the variance of all noise after the step, of signal's shape.
      std: the standard deviation of the noise that is added, of signal's shape.
    """
    # Rounding may take the argument just below zero where the variance is all of the noise's.
    kept = jnp.sqrt(jnp.maximum(variance - std**2, 0))
    return Gaussian(signal * clean + kept * noise, std)


def per_sample(values: float | jax.Array, like: jax.Array) -> jax.Array:
    """Returns values [batch] with as many axes as latents, to be multiplied with them.

    Args:
      values: one number for each sample, [batch], or one for all, which is returned as it is.
      like: the latents, [batch, ...].
    """
    values = jnp.asarray(values)
    if values.ndim == 0:
        return values
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))
