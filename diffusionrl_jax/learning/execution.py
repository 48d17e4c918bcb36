"""Runs an iteration as one compiled program, or as one program per phase."""

import functools
import operator
from typing import Protocol

import jax

from diffusionrl_jax.distributed.mesh import batch_sharding, parameter_sharding, replicated
from diffusionrl_jax.learning.algorithm import Algorithm
from diffusionrl_jax.learning.host_scoring import PendingScores, start_scoring
from diffusionrl_jax.learning.iteration import Batch, Frozen, Samples
from diffusionrl_jax.learning.phases import Phases, iteration
from diffusionrl_jax.learning.state import TrainState
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.monitoring.progress import PhaseTimer

EXECUTIONS = ("auto", "fused", "split")


class TrainStep(Protocol):
    """One iteration, from `make_train_step`."""

    def __call__(
        self, state: TrainState, frozen: Frozen, batch: Batch, following: Batch | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Makes one iteration, and returns the new state and the metrics.

        Args:
          state: the train state, which is donated.
          frozen: the parameters that are not trained.
          batch: what the host gives the iteration.
          following: the batch of the next iteration, whose images may be drawn meanwhile, or None.
        """
        ...


def choose_execution(execution: str, scores_on_host: bool = False) -> str:
    """Returns the execution that is meant by "auto": fused, except on XLA's CPU backend.

    There phases are as fast apart, and can be timed. Other executions are returned as they are.

    Args:
      execution: one of `EXECUTIONS`.
      scores_on_host: whether images leave the devices to be scored, which no fused program can do.

    Raises:
      UserError: there is no such execution, or it can't score on the host.
    """
    if execution not in EXECUTIONS:
        raise UserError(f"config.execution={execution!r} must be one of {EXECUTIONS}.")
    if execution == "fused" and scores_on_host:
        raise UserError("config.execution='fused' cannot have a host_reward: set it to 'split'.")
    if execution == "auto":
        return "split" if scores_on_host or jax.default_backend() == "cpu" else "fused"
    return execution


def fused_program(algorithm: Algorithm, state: TrainState) -> jax.stages.Wrapped:
    """Returns a whole iteration as one program of (state, frozen, batch), which donates its state.

    Args:
      algorithm: the iteration's functions.
      state: the train state, or its shapes.
    """
    mesh = algorithm.mesh
    return jax.jit(
        functools.partial(iteration, algorithm.phases()),
        donate_argnums=0,
        out_shardings=(parameter_sharding(mesh, state), replicated(mesh)),
    )


def phase_programs(algorithm: Algorithm, state: TrainState) -> Phases:
    """Returns an iteration's parts as programs of their own.

    Args:
      algorithm: the iteration's functions.
      state: the train state, or its shapes. Programs that take a state donate it.

    Returns:
      The phases. `update` takes (state, frozen, examples, text, index) and cuts the example out
      itself, so that one program serves every update of a batch.
    """
    phases, mesh = algorithm.phases(), algorithm.mesh
    by_task, of_state = batch_sharding(mesh, axis=1), parameter_sharding(mesh, state)

    def update(state, frozen, examples, text, index):
        example = jax.tree.map(lambda leaf: leaf[index], examples)
        # XLA's CPU compiler may fail on what it makes of a slice and all that is computed from it.
        example = jax.lax.optimization_barrier(example)
        return phases.update(state, frozen, example, text)

    return Phases(
        sample=jax.jit(phases.sample, out_shardings=by_task),
        score=jax.jit(phases.score, out_shardings=by_task),
        prepare=jax.jit(phases.prepare),
        update=jax.jit(update, donate_argnums=0, out_shardings=(of_state, replicated(mesh))),
        finish=jax.jit(phases.finish, donate_argnums=0, out_shardings=of_state),
    )


def make_train_step(
    algorithm: Algorithm, state: TrainState, execution: str, timer: PhaseTimer
) -> TrainStep:
    """Compiles an iteration.

    Args:
      algorithm: the iteration's functions.
      state: the train state, or its shapes. The state that the iteration takes is donated.
      execution: "fused" or "split", from `choose_execution`.
      timer: gets the seconds of each phase. A fused iteration has one phase, "step".

    Returns:
      A function that takes (state, frozen, batch) and returns the new state and the metrics. Where
      the state samples ahead, the next iteration's batch may be given as well: its images are then
      drawn while the scorers on the host still score this one's. What is computed is the same. If
      it raises `ScorerError`, the state is as it was.
    """
    if execution == "fused":
        fused = fused_program(algorithm, state)

        def fused_step(state, frozen, batch, following=None):
            del following
            with timer.phase("step"):
                return jax.block_until_ready(fused(state, frozen, batch))

        return fused_step

    return SplitStep(algorithm, state, timer)


class SplitStep:
    """A `TrainStep` with a program for each phase.

    Args:
      algorithm, state, timer: as in `make_train_step`.

    Attributes:
      drawn: what was drawn ahead and is scored meanwhile: a batch, its samples, and the scores that
        are waited for; None if nothing was. It has no effect on any other batch.
    """

    def __init__(self, algorithm: Algorithm, state: TrainState, timer: PhaseTimer):
        self.algorithm, self.timer = algorithm, timer
        self.programs = phase_programs(algorithm, state)
        of_state = parameter_sharding(algorithm.mesh, state)
        self.keep_params = jax.jit(_keep_params, donate_argnums=0, out_shardings=of_state)
        self.drawn: tuple[Batch, Samples, PendingScores] | None = None

    def _draw(self, params, frozen, batch, step) -> Samples:
        """Draws an iteration's samples, and waits for them."""
        with self.timer.phase("sample"):
            samples = self.programs.sample(params, frozen, batch.input_ids, step)
            return jax.block_until_ready(samples)

    def _ask(self, samples: Samples, batch: Batch) -> tuple[Batch, Samples, PendingScores]:
        """Starts to score samples on the host.

        Returns:
          The batch, its samples, and the scores that are waited for.
        """
        algorithm = self.algorithm
        scores = start_scoring(algorithm.rewards, samples.images, batch.questions, algorithm.mesh)
        return batch, samples, scores

    def __call__(self, state, frozen, batch, following=None):
        """Makes one iteration, a phase at a time; see `TrainStep`."""
        programs, timer = self.programs, self.timer
        if self.drawn is None or self.drawn[0] is not batch:
            self.drawn = None  # Images that were drawn ahead are large.
            samples = self._draw(state.sampling_params, frozen, batch, state.step)
            self.drawn = self._ask(samples, batch)
            del samples
        # Nothing here holds the samples once they are handed over.
        (_, *samples, pending), self.drawn = self.drawn, None
        ahead = state.samples_ahead and following is not None
        next_samples = (
            self._draw(state.drawing_params, frozen, following, state.step + 1) if ahead else None
        )

        def score(frozen, samples, reward_inputs):
            with timer.phase("score"):
                inputs = tuple(map(operator.or_, reward_inputs, pending.result()))
                return jax.block_until_ready(programs.score(frozen, samples, inputs))

        def prepare(params, frozen, samples, rewards, batch, step, memory):
            with timer.phase("prepare"):
                batch = batch.replace(questions=())
                arguments = params, frozen, samples, rewards, batch, step, memory
                return jax.block_until_ready(programs.prepare(*arguments))

        def updates(phases, state, frozen, prepared):
            if next_samples is not None and following is not None:
                self.drawn = self._ask(next_samples, following)
            if state.samples_ahead:
                state = self.keep_params(state)
            with timer.phase("update"):
                history = []
                for examples, text in prepared.lessons:
                    for index in range(len(examples.weight)):
                        state, metrics = phases.update(state, frozen, examples, text, index)
                        history.append(metrics)
                state = jax.block_until_ready(state)
            return state, jax.tree.map(lambda *values: jax.numpy.stack(values), *history)

        def finish(state):
            with timer.phase("update"):
                return jax.block_until_ready(programs.finish(state))

        hand_over = lambda *_: samples.pop()
        phases = Phases(hand_over, score, prepare, programs.update, finish)
        return iteration(phases, state, frozen, batch, updates=updates)


def _keep_params(state: TrainState) -> TrainState:
    """Keeps a copy of the parameters before the update, which draw the next iteration's images."""
    copy = lambda leaf: jax.numpy.array(leaf, copy=True)
    return state.remember({"sampling_params": jax.tree.map(copy, state.drawing_params)})
