"""The losses. Each is a small pure function of one batch."""

import chex
import flax.struct
import jax
import jax.numpy as jnp

# The least number that `relative_error` divides by.
LEAST_ERROR = 1e-5


@flax.struct.dataclass
class SurrogateLoss:
    """The clipped surrogate loss of each sample.

    Attributes:
      loss: float32 [batch].
      clipped: float32 [batch], 1 where the ratio is outside the clip range and 0 elsewhere.
    """

    loss: jax.Array
    clipped: jax.Array


def clipped_surrogate(
    log_ratio: jax.Array, advantages: jax.Array, clip_range: float
) -> SurrogateLoss:
    """Computes -min(w A, clip(w, 1 - eps, 1 + eps) A) with w = p_theta / p_theta_old (Eq. 7).

    Args:
      log_ratio: the log-probability of the steps taken under the parameters that are trained, minus
        that under the parameters that took them, float32 [batch].
      advantages: A, float32 [batch].
      clip_range: eps, how far the ratio may leave 1.

    Returns:
      The loss of each sample, and whether its ratio is outside the clip range.
    """
    chex.assert_equal_shape([log_ratio, advantages])
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - clip_range, 1 + clip_range)
    return SurrogateLoss(
        loss=-jnp.minimum(ratio * advantages, clipped * advantages),
        clipped=(jnp.abs(ratio - 1) > clip_range).astype(jnp.float32),
    )


def masked_surrogate(
    log_ratio: jax.Array, advantages: jax.Array, divergence: jax.Array, most: float
) -> SurrogateLoss:
    """Computes -w A, without a gradient where the policy has gone far enough (2606.11025).

    That is where the divergence is above `most`, and the ratio w has already moved in the direction
    of the advantage A.

    Args:
      log_ratio, advantages: as in `clipped_surrogate`.
      divergence: how far the policy is from the one that took the step, float32 [batch].
      most: the largest divergence at which samples are moved on.

    Returns:
      The loss of each sample, and whether it has no gradient.
    """
    chex.assert_equal_shape([log_ratio, advantages, divergence])
    ratio = jnp.exp(log_ratio)
    moved = jnp.where(advantages > 0, ratio > 1, ratio < 1)
    masked = moved & (divergence > most)
    gain = ratio * advantages
    return SurrogateLoss(
        loss=-jnp.where(masked, jax.lax.stop_gradient(gain), gain),
        clipped=masked.astype(jnp.float32),
    )


def mean_square(difference: jax.Array) -> jax.Array:
    """Returns the mean square over a latent's elements, float32 [batch], of [batch, ...]."""
    return jnp.mean(jnp.square(difference), axis=tuple(range(1, difference.ndim)))


def relative_error(off: jax.Array) -> jax.Array:
    """Divides each sample's mean squared error by its mean absolute one, which has no gradient.

    NFT (2509.16117) and CRD (2603.14128) weigh errors so.

    Args:
      off: the differences, [B, ...].

    Returns:
      float32 [B]. Nothing is divided by less than `LEAST_ERROR`.
    """
    size = jnp.abs(jax.lax.stop_gradient(off)).mean(axis=tuple(range(1, off.ndim)))
    return mean_square(off) / jnp.maximum(size, LEAST_ERROR)


def pretraining(model_output: jax.Array, target: jax.Array, text_dropout: float) -> jax.Array:
    """Computes || target - e_theta(z_t, t, c) ||^2, averaged over a latent's elements (Eqs. 8-9).

    Where there are predictions for both texts c, the caption and the empty prompt, the loss is its
    expectation over the dropout of the caption: each text's error times the text's probability. The
    dropout is then not drawn.

    Args:
      model_output: the denoiser's predictions, float32 [batch, passes, ...]: the caption's and,
        where passes is 2, the empty prompt's.
      target: what it should predict, float32 [batch, ...].
      text_dropout: the probability of the empty prompt. It has no effect where passes is 1.

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
