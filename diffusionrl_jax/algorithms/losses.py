"""The losses, each a small pure function of one batch."""

import chex
import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class SurrogateLoss:
    """The clipped surrogate per sample.

    Attributes:
      loss: float32 [batch].
      clipped: float32 [batch], 1 where the ratio is outside the clip range.
    """

    loss: jax.Array
    clipped: jax.Array


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
      The loss of each sample, and whether it is clipped.
    """
    chex.assert_equal_shape([log_ratio, advantages])
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - clip_range, 1 + clip_range)
    return SurrogateLoss(
        loss=-jnp.minimum(ratio * advantages, clipped * advantages),
        clipped=(jnp.abs(ratio - 1) > clip_range).astype(jnp.float32),
    )


def mean_square(difference: jax.Array) -> jax.Array:
    """Returns the mean square over a latent's elements, float32 [batch], of [batch, ...]."""
    return jnp.mean(jnp.square(difference), axis=tuple(range(1, difference.ndim)))


def pretraining(model_output: jax.Array, target: jax.Array, text_dropout: float) -> jax.Array:
    """|| target - e_theta(z_t, t, c) ||^2, averaged over a latent's elements (Eqs. 8-9).

    Where there are predictions for both texts c, the loss is its expectation over the text's
    dropout: each text's error times the text's probability. No text is then drawn.

    Args:
      model_output: float32 [batch, passes, ...]: the text's prediction and,
        where passes is 2, the empty prompt's.
      target: float32 [batch, ...].
      text_dropout: the probability of the empty prompt; without effect where passes is 1.

    Returns:
      float32 [batch].
    """
    chex.assert_shape(model_output, (len(target), None, *target.shape[1:]))
    errors = jnp.mean(
        jnp.square(model_output - target[:, None]), axis=tuple(range(2, model_output.ndim))
    )
    if errors.shape[1] == 1:
        return errors[:, 0]
    return (1 - text_dropout) * errors[:, 0] + text_dropout * errors[:, 1]
