"""The parts of an iteration, and the order in which they follow each other."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from diffusionrl_jax.learning.examples import Examples
from diffusionrl_jax.learning.iteration import Batch, Frozen, Samples
from diffusionrl_jax.learning.state import TrainState
from diffusionrl_jax.models.text_to_image import Text


@flax.struct.dataclass
class Prepared:
    """What an iteration's updates are made from.

    Attributes:
      examples: arrays [U, B, ...], in the order in which they are trained on.
      text: the rows of text [R, B, P, ...] to which the examples refer.
      apart: further examples with their text, which are trained on after these. Their batches have
        another size, so that they are trained on by another program.
      memory: the parts of the train state's memory that have changed.
      metrics: the rewards' metrics, [T] each; none where nothing is drawn.
    """

    examples: Examples
    text: Text
    memory: Mapping[str, Any]
    metrics: Mapping[str, jax.Array]
    apart: tuple[tuple[Examples, Text], ...] = ()

    @property
    def lessons(self) -> tuple[tuple[Examples, Text], ...]:
        """All examples with their text."""
        return ((self.examples, self.text), *self.apart)


@dataclasses.dataclass(frozen=True)
class Phases:
    """The pure functions that an iteration consists of.

    They may also be the same functions compiled, timed or counted.

    Attributes:
      sample: takes (params, frozen, input_ids, step) and returns `Samples`.
      score: takes (frozen, samples, reward_inputs) and returns the rewards, float32 [T, B].
      prepare: takes (params, frozen, samples, rewards, batch, step, memory) and returns `Prepared`.
        The params are those that the samples were drawn with.
      update: takes (state, frozen, example, text) and returns the state and metrics after one
        update.
      finish: takes the state and returns the one that the next iteration starts from.
    """

    sample: Callable[..., Samples]
    score: Callable[..., jax.Array]
    prepare: Callable[..., Prepared]
    update: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    finish: Callable[[TrainState], TrainState]


def scan_updates(phases: Phases, state: TrainState, frozen: Frozen, prepared: Prepared):
    """Makes all updates of an iteration with `lax.scan`, within a compiled program.

    Returns:
      The new state, and the updates' metrics, [U] each.
    """
    history = []
    for examples, text in prepared.lessons:
        step = lambda state, example, text=text: phases.update(state, frozen, example, text)
        state, metrics = jax.lax.scan(step, state, examples)
        history.append(metrics)
    return state, jax.tree.map(lambda *values: jnp.concatenate(values), *history)


def iteration(
    phases: Phases,
    state: TrainState,
    frozen: Frozen,
    batch: Batch,
    *,
    updates: Callable = scan_updates,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Runs Algorithm 1 once. No other place knows the order of an iteration's parts.

    Args:
      phases: the functions that the iteration consists of.
      state: the train state that it starts from.
      frozen: the parameters that are not trained.
      batch: what the host gives the iteration.
      updates: applies `phases.update` to all examples; takes and returns what `scan_updates` does.

    Returns:
      The new state, and the metrics: those of the updates [U], with the "objective" of each, and
      those of the rewards [T].
    """
    params = state.sampling_params
    samples = phases.sample(params, frozen, batch.input_ids, state.step)
    rewards = phases.score(frozen, samples, batch.reward_inputs)
    # From here on only what is trained on is held.
    samples = samples.trained_on()
    prepared = phases.prepare(params, frozen, samples, rewards, batch, state.step, state.memory)
    del params, samples
    state = state.remember(prepared.memory)
    state, metrics = updates(phases, state, frozen, prepared)
    return phases.finish(state), metrics | dict(prepared.metrics)
