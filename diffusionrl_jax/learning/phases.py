"""The parts of an iteration, and the order in which they follow each other."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax

from diffusionrl_jax.learning.examples import Examples
from diffusionrl_jax.learning.iteration import Batch, Frozen, Samples
from diffusionrl_jax.learning.state import TrainState
from diffusionrl_jax.models.text_to_image import Text


@flax.struct.dataclass
class Prepared:
    """What an iteration is trained on.

    Attributes:
      examples: [U, B, ...], in the order in which they are trained on.
      text: [R, B, P, ...], to whose rows they refer.
      memory: of the state, from now on.
      metrics: of the rewards, [T] each.
    """

    examples: Examples
    text: Text
    memory: Mapping[str, Any]
    metrics: Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Phases:
    """An iteration's pure functions, or the same compiled, timed or counted.

    Attributes:
      sample: of (params, frozen, input_ids, step) gives `Samples`.
      score: of (frozen, samples, reward_inputs) gives rewards [T, B].
      prepare: of (params, frozen, samples, rewards, batch, step, memory) gives `Prepared`; the
        params are those that the samples were drawn with.
      update: of (state, frozen, example, text) gives the state and the metrics of one update.
      finish: of the state gives the next iteration's.
    """

    sample: Callable[..., Samples]
    score: Callable[..., jax.Array]
    prepare: Callable[..., Prepared]
    update: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    finish: Callable[[TrainState], TrainState]


def scan_updates(phases: Phases, state: TrainState, frozen: Frozen, prepared: Prepared):
    """All updates, as part of a program."""
    step = lambda state, example: phases.update(state, frozen, example, prepared.text)
    return jax.lax.scan(step, state, prepared.examples)


def iteration(
    phases: Phases,
    state: TrainState,
    frozen: Frozen,
    batch: Batch,
    *,
    updates: Callable = scan_updates,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Algorithm 1: the one place that has the order of an iteration.

    Args:
      phases: what it is made of.
      state, frozen, batch: what it starts from.
      updates: applies `phases.update` to all examples.

    Returns:
      The new state, and the metrics, those of the updates [U] and of the rewards [T].
    """
    params = state.sampling_params
    samples = phases.sample(params, frozen, batch.input_ids, state.step)
    rewards = phases.score(frozen, samples, batch.reward_inputs)
    # From here on nothing is held but what is trained on.
    samples = samples.trained_on()
    prepared = phases.prepare(params, frozen, samples, rewards, batch, state.step, state.memory)
    del params, samples
    state = state.remember(prepared.memory)
    state, metrics = updates(phases, state, frozen, prepared)
    owners = {"objective": prepared.examples.objective}
    return phases.finish(state), metrics | owners | dict(prepared.metrics)
