"""The train state and the optimiser."""

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from diffusionrl_jax.learning.prompt_statistics import PastRewards
from diffusionrl_jax.models.parameters import Parameters


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

    past_rewards = ()  # No field: a checkpoint would have to have it.

    @property
    def evaluation_params(self) -> Parameters:
        """What pictures are drawn with: the average where one is kept."""
        return self.params if self.ema_params is None else self.ema_params

    def with_past_rewards(self, past_rewards: PastRewards) -> "TrainState":
        """The state itself: it keeps none."""
        del past_rewards
        return self


@flax.struct.dataclass
class TrainStateWithRewards(TrainState):
    """Of a run with a task whose rewards are normalised by prompt.

    Attributes:
      past_rewards: of each task, its prompts' statistics or None.
    """

    past_rewards: PastRewards

    def with_past_rewards(self, past_rewards: PastRewards) -> "TrainStateWithRewards":
        """The state with these in place of its own."""
        return self.replace(past_rewards=past_rewards)


@flax.struct.dataclass
class TrainStateAhead(TrainState):
    """Of a run that draws an iteration's images before the last iteration's update.

    Attributes:
      sampling_params: what the next iteration's images are drawn with, `params` of one update ago.
    """

    sampling_params: Parameters


@flax.struct.dataclass
class TrainStateAheadWithRewards(TrainStateWithRewards, TrainStateAhead):
    """Of a run that does both."""


# By the fields that they have beyond `TrainState`'s.
STATES = {
    frozenset(): TrainState,
    frozenset({"past_rewards"}): TrainStateWithRewards,
    frozenset({"sampling_params"}): TrainStateAhead,
    frozenset({"past_rewards", "sampling_params"}): TrainStateAheadWithRewards,
}


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
    clip = config.gradient_clip
    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
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
    past_rewards: PastRewards = (),
    samples_ahead: bool = False,
) -> TrainState:
    """The state before the first iteration. The parameters are copied, so that it can be donated.

    Args:
      params: float32 parameters to start from.
      optimizer: from `make_optimizer`.
      ema_decay: 0 keeps no average.
      past_rewards: of each task, its prompts' statistics or None; empty if no task keeps any.
      samples_ahead: whether the state also keeps what the next images are drawn with.
    """
    copy = lambda tree: jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
    fields = {
        "step": jnp.zeros((), jnp.int32),
        "params": copy(params),
        "optimizer_state": optimizer.init(params),
        "ema_params": copy(params) if ema_decay else None,
    }
    more = {"past_rewards": past_rewards} if past_rewards else {}
    if samples_ahead:
        more["sampling_params"] = copy(params)
    return STATES[frozenset(more)](**fields, **more)
