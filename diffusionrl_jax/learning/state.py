"""The train state and the optimiser."""

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from diffusionrl_jax.models.stable_diffusion import Parameters


@flax.struct.dataclass
class TrainState:
    """Everything that training changes, and all that a checkpoint holds.

    Attributes:
      step: int32 scalar, iterations done; random numbers depend on it and the seed alone.
      params: what is trained, float32: the UNet's parameters, or LoRA's factors of them.
      optimizer_state: optax's.
      ema_params: exponential moving average of params over iterations; None if there is none.
    """

    step: jax.Array
    params: Parameters
    optimizer_state: optax.OptState
    ema_params: Parameters | None

    @property
    def evaluation_params(self) -> Parameters:
        """What pictures are drawn with: the average where one is kept."""
        return self.params if self.ema_params is None else self.ema_params


@flax.struct.dataclass
class TrainStateAhead(TrainState):
    """Of a run that draws an iteration's images before the last iteration's update.

    Attributes:
      sampling_params: what the next iteration's images are drawn with, `params` of one update ago.
    """

    sampling_params: Parameters


def make_optimizer(
    config: ml_collections.ConfigDict, updates_per_iteration: int
) -> optax.GradientTransformation:
    """AdamW with gradient clipping, as in the paper's Table 6.

    Args:
      config: fields learning_rate, warmup_iterations, decay_iterations, beta1, beta2, epsilon,
        weight_decay, gradient_clip.
      updates_per_iteration: how many steps of the optimiser an iteration takes.
    """
    rate = config.learning_rate
    warmup = config.warmup_iterations * updates_per_iteration
    decay = config.decay_iterations * updates_per_iteration
    if decay:
        rate = optax.warmup_cosine_decay_schedule(0, rate, warmup, warmup + decay, rate / 10)
    elif warmup:
        rate = optax.linear_schedule(0, rate, warmup)
    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip),
        optax.adamw(
            rate,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        ),
    )


def init_state(
    params: Parameters,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    samples_ahead: bool = False,
) -> TrainState:
    """The state before the first iteration. The parameters are copied, so that it can be donated.

    Args:
      params: float32 parameters to start from.
      optimizer: from `make_optimizer`.
      ema_decay: 0 keeps no average.
      samples_ahead: whether to make a `TrainStateAhead`.
    """
    copy = lambda tree: jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
    fields = {
        "step": jnp.zeros((), jnp.int32),
        "params": copy(params),
        "optimizer_state": optimizer.init(params),
        "ema_params": copy(params) if ema_decay else None,
    }
    if samples_ahead:
        return TrainStateAhead(**fields, sampling_params=copy(params))
    return TrainState(**fields)
