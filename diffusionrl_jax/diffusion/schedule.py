"""The noise schedule of a diffusers scheduler's config, as arrays."""

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

PREDICTION_TYPES = ("epsilon", "v_prediction")


@flax.struct.dataclass
class Schedule:
    """A chain of S denoising steps, first step first, within T training timesteps.

    Attributes:
      timesteps: int32 [S], descending.
      alpha_bar: float32 [S], cumulative product of 1 - beta at each timestep.
      previous_alpha_bar: float32 [S], the same at the timestep that each step leads to.
      training_alpha_bar: float32 [T].
      stochastic_steps: how many steps, from the first, have noise where eta is not 0: all S, or
        S - 1 where the last one leads onto alpha_bar = 1 or stays where it is.
      prediction_type: what the UNet predicts, "epsilon" or "v_prediction".
    """

    timesteps: jax.Array
    alpha_bar: jax.Array
    previous_alpha_bar: jax.Array
    training_alpha_bar: jax.Array
    stochastic_steps: int = flax.struct.field(pytree_node=False)
    prediction_type: str = flax.struct.field(pytree_node=False)

    @property
    def steps(self) -> int:
        return self.timesteps.shape[0]


def _betas(config: dict) -> np.ndarray:
    start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    count, name = config.get("num_train_timesteps", 1000), config.get("beta_schedule", "linear")
    # float32, since it is what the checkpoints were trained with.
    if name == "linear":
        return np.linspace(start, end, count, dtype=np.float32)
    if name == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, count, dtype=np.float32) ** 2
    raise ValueError(f"beta_schedule {name!r} is not known: use 'linear' or 'scaled_linear'.")


def _timesteps(config: dict, steps: int, count: int) -> np.ndarray:
    spacing = config.get("timestep_spacing", "leading")
    if spacing == "leading":
        timesteps = np.arange(steps)[::-1] * (count // steps) + config.get("steps_offset", 0)
    elif spacing == "trailing":
        # Rounding makes some ranges one too long.
        timesteps = np.round(np.arange(count, 0, -count / steps))[:steps] - 1
    elif spacing == "linspace":
        timesteps = np.linspace(0, count - 1, steps).round()[::-1]
    else:
        raise ValueError(
            f"timestep_spacing {spacing!r} is not known: use 'leading', 'trailing' or 'linspace'."
        )
    return timesteps.astype(np.int32)


def make_schedule(scheduler_config: dict, steps: int) -> Schedule:
    """Builds the chain that diffusers' `DDIMScheduler.set_timesteps(steps)` walks.

    Args:
      scheduler_config: contents of the folder's scheduler_config.json.
      steps: number of denoising steps.

    Returns:
      The schedule.

    Raises:
      ValueError: if the config asks for something that this sampler would get wrong, or if
        `steps` is not between 1 and the number of training timesteps.
    """
    betas = _betas(scheduler_config)
    if not 1 <= steps <= len(betas):
        raise ValueError(f"steps must be between 1 and {len(betas)}, not {steps}.")
    if scheduler_config.get("trained_betas") is not None:
        raise ValueError("The scheduler's trained_betas are not supported: use a beta_schedule.")
    for option in ("clip_sample", "thresholding", "rescale_betas_zero_snr"):
        # Stable Diffusion's folders have clip_sample false; diffusers' default is true.
        if scheduler_config.get(option, False):
            raise ValueError(f"The scheduler's option {option} is not supported: set it to false.")
    prediction_type = scheduler_config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type {prediction_type!r} is not one of {PREDICTION_TYPES}.")
    alpha_bar = np.cumprod(1.0 - betas, dtype=np.float32)
    timesteps = _timesteps(scheduler_config, steps, len(betas))
    if timesteps[0] >= len(betas):
        raise ValueError(
            f"With {steps} steps the first timestep is {timesteps[0]}, beyond the {len(betas)} of "
            "training: use fewer steps, or set the scheduler's steps_offset to 0."
        )
    previous = timesteps - len(betas) // steps
    final = 1.0 if scheduler_config.get("set_alpha_to_one", True) else alpha_bar[0]
    previous_alpha_bar = np.where(previous >= 0, alpha_bar[np.maximum(previous, 0)], final)
    deterministic = previous_alpha_bar[-1] in (1.0, alpha_bar[timesteps[-1]])
    return Schedule(
        timesteps=jnp.asarray(timesteps),
        alpha_bar=jnp.asarray(alpha_bar[timesteps]),
        previous_alpha_bar=jnp.asarray(previous_alpha_bar, jnp.float32),
        training_alpha_bar=jnp.asarray(alpha_bar),
        stochastic_steps=steps - 1 if deterministic else steps,
        prediction_type=prediction_type,
    )


def _per_sample(values: jax.Array, like: jax.Array) -> jax.Array:
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def add_noise(
    schedule: Schedule, clean: jax.Array, noise: jax.Array, timesteps: jax.Array
) -> jax.Array:
    """Diffuses clean latents to training timesteps (Eq. 1).

    Args:
      schedule: the noise schedule.
      clean: float32 [batch, channels, height, width].
      noise: standard normal, of the same shape.
      timesteps: int32 [batch] in [0, T).

    Returns:
      float32, of clean's shape.
    """
    chex.assert_equal_shape([clean, noise])
    alpha_bar = _per_sample(schedule.training_alpha_bar[timesteps], clean)
    return jnp.sqrt(alpha_bar) * clean + jnp.sqrt(1 - alpha_bar) * noise


def training_target(
    schedule: Schedule, clean: jax.Array, noise: jax.Array, timesteps: jax.Array
) -> jax.Array:
    """What the UNet should predict: the noise, or the velocity of Salimans & Ho (2202.00512).

    Shapes as in `add_noise`.
    """
    if schedule.prediction_type == "epsilon":
        return noise
    alpha_bar = _per_sample(schedule.training_alpha_bar[timesteps], clean)
    return jnp.sqrt(alpha_bar) * noise - jnp.sqrt(1 - alpha_bar) * clean
