"""The train state and the optimiser."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.models.parameters import Parameters

# All of a state's fields except its memory.
FIELDS = ("step", "params", "optimizer_state", "ema_params")

# The names, in the memory, of averages that follow the parameters.
DRAWING, TRAILING = "drawing_params", "trailing_params"


@flax.struct.dataclass
class TrainState:
    """Everything that training changes, and all that a checkpoint holds.

    Attributes:
      step: the number of iterations done, int32 scalar. Random numbers depend on it and on the seed
        alone.
      params: the parameters that are trained, float32: the denoiser's, or LoRA's factors.
      optimizer_state: the state of the optax optimiser.
      ema_params: the exponential moving average of params over iterations; None if none is kept.
      memory: what an algorithm keeps from one iteration to the next besides, by name.
        "past_rewards" has the statistics of each task's prompts, or None. "drawing_params" has an
        average of params that draws the images in their place, and "trailing_params" one that only
        follows them. "sampling_params" has the parameters that the next images are drawn with,
        where they are drawn before the update of the iteration before.
    """

    step: jax.Array
    params: Parameters
    optimizer_state: optax.OptState
    ema_params: Parameters | None
    memory: dict[str, Any] = flax.struct.field(default_factory=dict)

    @property
    def evaluation_params(self) -> Parameters:
        """The parameters that evaluations draw with: the average where one is kept."""
        return self.params if self.ema_params is None else self.ema_params

    @property
    def drawing_params(self) -> Parameters:
        """The parameters that images are drawn with from now on."""
        return self.memory.get(DRAWING, self.params)

    @property
    def sampling_params(self) -> Parameters:
        """The parameters that an iteration's images are drawn with."""
        return self.memory.get("sampling_params", self.drawing_params)

    @property
    def samples_ahead(self) -> bool:
        """Whether an iteration's images are drawn before the update of the iteration before."""
        return "sampling_params" in self.memory

    def remember(self, memory: Mapping[str, Any]) -> "TrainState":
        """Returns the state with these parts of the memory in place of its own."""
        return dataclasses.replace(self, memory=self.memory | dict(memory))

    def saved(self) -> dict[str, Any]:
        """Returns the state as checkpoints hold it: the memory's parts beside the other fields."""
        return {name: getattr(self, name) for name in FIELDS} | self.memory

    @classmethod
    def of_saved(cls, fields: Mapping[str, Any]) -> "TrainState":
        """Makes a state of what `saved` returned."""
        memory = {name: value for name, value in fields.items() if name not in FIELDS}
        return cls(**{name: fields[name] for name in FIELDS}, memory=memory)


def make_optimizer(config: Config, updates_per_iteration: int) -> optax.GradientTransformation:
    """Makes AdamW with gradient clipping, as in the paper's Table 6.

    With decay_iterations the learning rate rises from 0 over warmup_iterations, then falls over
    decay_iterations, along a cosine, to a tenth of its peak. Without, it stays where the warm-up
    ends.

    Args:
      config: has the fields learning_rate, warmup_iterations, decay_iterations, beta1, beta2,
        epsilon, weight_decay, gradient_clip and one_step. A gradient_clip of 0 clips nothing. With
        one_step only the last update of an iteration changes the parameters, by the mean of all
        its updates' gradients, which is clipped as one.
      updates_per_iteration: how many gradients an iteration gives to the optimiser.
    """
    steps = 1 if config.one_step else updates_per_iteration
    rate = config.learning_rate
    warmup = config.warmup_iterations * steps
    decay = config.decay_iterations * steps
    if decay:
        rate = optax.warmup_cosine_decay_schedule(0, rate, warmup, warmup + decay, rate / 10)
    elif warmup:
        rate = optax.linear_schedule(0, rate, warmup)
    clip = config.gradient_clip
    optimizer = optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.adamw(
            rate,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        ),
    )
    if steps == updates_per_iteration:
        return optimizer
    return optax.MultiSteps(optimizer, updates_per_iteration).gradient_transformation()


def init_state(
    params: Parameters,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    memory: Mapping[str, Any] | None = None,
    samples_ahead: bool = False,
    follower: str | None = None,
) -> TrainState:
    """Returns the state before the first iteration.

    The parameters are copied, so that the state can be donated.

    Args:
      params: the parameters to start from, float32.
      optimizer: the optimiser, from `make_optimizer`.
      ema_decay: the decay of the parameters' average; 0 keeps none.
      memory: what the algorithm keeps between iterations, at its start.
      samples_ahead: whether the state also keeps the parameters that the next images are drawn
        with.
      follower: the name of the average of the parameters that the memory keeps; None keeps none.
    """
    copy = lambda tree: jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
    kept = ("sampling_params",) if samples_ahead else ()
    kept += (follower,) if follower else ()
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=copy(params),
        optimizer_state=optimizer.init(params),
        ema_params=copy(params) if ema_decay else None,
        memory=dict(memory or {}) | {name: copy(params) for name in kept},
    )
