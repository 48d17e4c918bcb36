"""Runs an iteration as one compiled program, or as one program per phase."""

from collections.abc import Callable

import jax

from diffusionrl_jax.distributed.mesh import batch_sharding, parameter_sharding, replicated
from diffusionrl_jax.learning.advantages import reward_metrics
from diffusionrl_jax.learning.policy_gradient import Batch, Frozen, PolicyGradient
from diffusionrl_jax.learning.state import TrainState
from diffusionrl_jax.monitoring.progress import PhaseTimer

EXECUTIONS = ("auto", "fused", "split")
TrainStep = Callable[[TrainState, Frozen, Batch], tuple[TrainState, dict[str, jax.Array]]]


def choose_execution(execution: str) -> str:
    """Resolves "auto": fused, except on XLA's CPU backend, where phases run faster apart.

    Raises:
      ValueError: if the name is not one of `EXECUTIONS`.
    """
    if execution not in EXECUTIONS:
        raise ValueError(f"config.execution={execution!r} must be one of {EXECUTIONS}.")
    if execution == "auto":
        return "split" if jax.default_backend() == "cpu" else "fused"
    return execution


def compile_update(algorithm: PolicyGradient, state: TrainState) -> Callable:
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
      A function of (state, frozen, batch) that gives the new state and the metrics.
    """
    mesh = algorithm.mesh
    state_sharding = parameter_sharding(mesh, state)
    outputs = (state_sharding, replicated(mesh))
    if execution == "fused":
        fused = jax.jit(algorithm.fused, donate_argnums=0, out_shardings=outputs)

        def fused_step(state, frozen, batch):
            with timer.phase("step"):
                return jax.block_until_ready(fused(state, frozen, batch))

        return fused_step

    by_task = batch_sharding(mesh, axis=1)
    sample = jax.jit(algorithm.sample, out_shardings=by_task)
    score = jax.jit(algorithm.score, out_shardings=by_task)
    prepare = jax.jit(algorithm.prepare)
    update = compile_update(algorithm, state)
    finish = jax.jit(algorithm.finish, donate_argnums=0, out_shardings=state_sharding)

    def split_step(state, frozen, batch):
        with timer.phase("sample"):
            samples = sample(state.params, frozen, batch.input_ids, state.step)
            jax.block_until_ready(samples)
        with timer.phase("score"):
            rewards = score(frozen, samples.images, batch.reward_inputs)
            updates, text, advantages = jax.block_until_ready(
                prepare(frozen, samples, rewards, batch, state.step)
            )
        with timer.phase("update"):
            history = []
            for index in range(updates.task.shape[0]):
                state, metrics = update(state, frozen, updates, text, index)
                history.append(metrics)
            state = jax.block_until_ready(finish(state))
        metrics = jax.tree.map(lambda *values: jax.numpy.stack(values), *history)
        return state, metrics | reward_metrics(advantages)

    return split_step
