"""The losses, each a small pure function of one batch."""

import chex
import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class SurrogateLoss:
    """The clipped surrogate per sample, and what tells whether the update is sane.

    Attributes:
      loss: float32 [batch].
      ratio: float32 [batch], p_theta / p_theta_old.
      clipped: float32 [batch], 1 where the ratio is outside the clip range.
      approximate_kl: float32 [batch], half the squared log-ratio, nats per latent element.
    """

    loss: jax.Array
    ratio: jax.Array
    clipped: jax.Array
    approximate_kl: jax.Array


def clipped_surrogate(
    log_ratio: jax.Array, advantages: jax.Array, clip_range: float
) -> SurrogateLoss:
    """-min(w A, clip(w, 1 - eps, 1 + eps) A) with w = p_theta / p_theta_old (Eq. 7).

    Args:
      log_ratio: float32 [batch], log-probability of the taken steps under the parameters being
        trained, minus that under the parameters that took them.
      advantages: [batch].
      clip_range: eps.

    Returns:
      The loss of each sample with its diagnostics.
    """
    chex.assert_equal_shape([log_ratio, advantages])
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - clip_range, 1 + clip_range)
    return SurrogateLoss(
        loss=-jnp.minimum(ratio * advantages, clipped * advantages),
        ratio=ratio,
        clipped=(jnp.abs(ratio - 1) > clip_range).astype(jnp.float32),
        approximate_kl=0.5 * jnp.square(log_ratio),
    )


def pretraining(model_output: jax.Array, target: jax.Array) -> jax.Array:
    """|| target - e_theta(z_t, t) ||^2, averaged over a latent's elements (Eqs. 8-9).

    Args:
      model_output: float32 [batch, ..., channels, height, width].
      target: of the same shape.

    Returns:
      float32 [batch].
    """
    chex.assert_equal_shape([model_output, target])
    return jnp.mean(jnp.square(model_output - target), axis=tuple(range(1, target.ndim)))
