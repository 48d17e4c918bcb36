"""Runs an iteration as one compiled program, or as one program per phase."""

import operator
from typing import Protocol

import jax

from diffusionrl_jax.distributed.mesh import batch_sharding, parameter_sharding, replicated
from diffusionrl_jax.learning.advantages import reward_metrics
from diffusionrl_jax.learning.host_scoring import start_scoring
from diffusionrl_jax.learning.iteration import Batch, Frozen
from diffusionrl_jax.learning.policy_gradient import PolicyGradient
from diffusionrl_jax.learning.state import TrainState, TrainStateAhead
from diffusionrl_jax.monitoring.progress import PhaseTimer

EXECUTIONS = ("auto", "fused", "split")


class TrainStep(Protocol):
    """One iteration, from `make_train_step`."""

    def __call__(
        self, state: TrainState, frozen: Frozen, batch: Batch, following: Batch | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """The new state and the metrics."""


def choose_execution(execution: str, scores_on_host: bool = False) -> str:
    """Resolves "auto": fused, except on XLA's CPU backend, where phases run faster apart.

    Args:
      execution: one of `EXECUTIONS`.
      scores_on_host: whether images leave the devices to be scored, which no fused program can do.

    Raises:
      ValueError: if there is no such execution, or it can't score on the host.
    """
    if execution not in EXECUTIONS:
        raise ValueError(f"config.execution={execution!r} must be one of {EXECUTIONS}.")
    if execution == "fused" and scores_on_host:
        raise ValueError("config.execution='fused' cannot have a host_reward: set it to 'split'.")
    if execution == "auto":
        return "split" if scores_on_host or jax.default_backend() == "cpu" else "fused"
    return execution


def fused_program(algorithm: PolicyGradient, state: TrainState) -> jax.stages.Wrapped:
    """A whole iteration as one program, `PolicyGradient.fused`; its state is donated.

    Args:
      algorithm: the iteration's functions.
      state: the train state, or its shapes.
    """
    mesh = algorithm.mesh
    outputs = (parameter_sharding(mesh, state), replicated(mesh))
    return jax.jit(algorithm.fused, donate_argnums=0, out_shardings=outputs)


def update_program(algorithm: PolicyGradient, state: TrainState) -> jax.stages.Wrapped:
    """One update as a program.

    Args:
      algorithm: the iteration's functions.
      state: the train state, or its shapes; its argument is donated.

    Returns:
      A function of (state, frozen, updates, text, index) that gives the new state and the metrics
      of the update of that index.
    """
    # The slice is taken inside, so that one program serves every update.
    return jax.jit(
        lambda state, frozen, updates, text, index: algorithm.update(
            state, frozen, jax.tree.map(lambda leaf: leaf[index], updates), text
        ),
        donate_argnums=0,
        out_shardings=(parameter_sharding(algorithm.mesh, state), replicated(algorithm.mesh)),
    )


def make_train_step(
    algorithm: PolicyGradient, state: TrainState, execution: str, timer: PhaseTimer
) -> TrainStep:
    """Compiles an iteration.

    Args:
      algorithm: the iteration's functions.
      state: the train state, or its shapes; its argument is donated.
      execution: "fused" or "split", from `choose_execution`.
      timer: gets the seconds of each phase; fused there is one phase, "step".

    Returns:
      A function of (state, frozen, batch) that gives the new state and the metrics. A
      `TrainStateAhead` may come with the batch of the next iteration besides: its images are then
      drawn while the scorers on the host still score this one's. What is computed is the same. A
      `ScorerError` leaves the state as it was.
    """
    if execution == "fused":
        fused = fused_program(algorithm, state)

        def fused_step(state, frozen, batch, following=None):
            del following
            with timer.phase("step"):
                return jax.block_until_ready(fused(state, frozen, batch))

        return fused_step

    mesh = algorithm.mesh
    state_sharding = parameter_sharding(mesh, state)
    by_task = batch_sharding(mesh, axis=1)
    sample = jax.jit(algorithm.sample, out_shardings=by_task)
    score = jax.jit(algorithm.score, out_shardings=by_task)
    prepare = jax.jit(algorithm.prepare)
    update = update_program(algorithm, state)
    finish = jax.jit(algorithm.finish, donate_argnums=0, out_shardings=state_sharding)
    keep_params = jax.jit(_keep_params, donate_argnums=0, out_shardings=state_sharding)

    def draw(params, frozen, batch, step):
        with timer.phase("sample"):
            return jax.block_until_ready(sample(params, frozen, batch.input_ids, step))

    def ask(samples, batch):
        scores = start_scoring(algorithm.rewards, samples.images, batch.questions, mesh)
        return batch, samples, scores

    drawn = []  # At most one: a batch, its samples, and the scores that are waited for.

    def split_step(state, frozen, batch, following=None):
        ahead = isinstance(state, TrainStateAhead)
        if not drawn or drawn[0][0] is not batch:
            params = state.sampling_params if ahead else state.params
            drawn[:] = [ask(draw(params, frozen, batch, state.step), batch)]
        _, samples, pending = drawn.pop()
        if ahead and following is not None:
            following_samples = draw(state.params, frozen, following, state.step + 1)
        with timer.phase("score"):
            from_host = pending.result()
            inputs = tuple(map(operator.or_, batch.reward_inputs, from_host))
            rewards = score(frozen, samples, inputs)
            # From here on nothing is held but what is trained on.
            samples = samples.replace(images=None, latents=None)
            updates, text, advantages = jax.block_until_ready(
                prepare(
                    frozen,
                    samples,
                    rewards,
                    batch.replace(questions=()),
                    state.step,
                    state.past_rewards,
                )
            )
            del samples
            state = state.with_past_rewards(advantages.past_rewards)
        if ahead:
            if following is not None:
                drawn.append(ask(following_samples, following))
            state = keep_params(state)
        with timer.phase("update"):
            history = []
            for index in range(updates.task.shape[0]):
                state, metrics = update(state, frozen, updates, text, index)
                history.append(metrics)
            state = jax.block_until_ready(finish(state))
        metrics = jax.tree.map(lambda *values: jax.numpy.stack(values), *history)
        return state, metrics | reward_metrics(advantages)

    return split_step


def _keep_params(state: TrainStateAhead) -> TrainStateAhead:
    """Before the update: its parameters are those that draw the next iteration's images."""
    copy = lambda leaf: jax.numpy.array(leaf, copy=True)
    return state.replace(sampling_params=jax.tree.map(copy, state.params))
