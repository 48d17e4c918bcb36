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
