"""Trains a text-to-image diffusion model by reinforcement learning.

    python -m diffusionrl_jax.main --config=configs/emoji.py --workdir=/tmp/emoji

Started again with the same workdir it goes on where it was.
"""

import contextlib
import math
import time

import jax
from absl import flags, logging
from etils import epath
from ml_collections import config_flags

from diffusionrl_jax import announcement, planning, programs, runs
from diffusionrl_jax import experiment as experiments
from diffusionrl_jax.checkpoints import (
    PreemptionGuard,
    make_writable,
    write_run_information,
)
from diffusionrl_jax.distributed import processes, start
from diffusionrl_jax.evaluation import Evaluator, draw_before_after
from diffusionrl_jax.learning import summary
from diffusionrl_jax.learning.execution import choose_execution, make_train_step
from diffusionrl_jax.learning.state import TrainStateAhead
from diffusionrl_jax.monitoring.metrics import MetricWriter
from diffusionrl_jax.monitoring.progress import PhaseTimer, Progress
from diffusionrl_jax.rewards.host_reward import ScorerError

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and pictures go.")
flags.mark_flags_as_required(["config", "workdir"])


def train(config, workdir: str) -> None:
    """Runs, or resumes, an experiment.

    Args:
      config: see `configs/common.py`.
      workdir: a folder; what an earlier run left in it is continued.

    Raises:
      ValueError, FileNotFoundError: bad input, before compute is spent.
      FloatingPointError: when the parameters or all rewards of a task are no longer finite.
      ScorerError: when a scorer on the host fails for good; a checkpoint is saved first.
    """
    make_writable(workdir, "--workdir")
    with contextlib.closing(runs.open_checkpoints(workdir, config)) as checkpoints:
        if checkpoints.steps():
            runs.check_same_experiment(workdir, config)
        described = config.to_dict()
        config, plan = planning.resolve(config)
        execution = choose_execution(config.execution, experiments.scores_on_host(config))
        experiment = experiments.build(config)
        if jax.process_index() == 0:
            print(announcement.announce(experiment, plan, workdir), flush=True)
        evaluator = Evaluator(experiment.policy, config, experiment.opened_scorers())
        experiment = experiment.with_pictures(str(epath.Path(workdir) / "cache"))
        restored = runs.restore_state(checkpoints, experiment.abstract_state())
        first, state = restored or (0, experiment.init_state())
        write_run_information(workdir, described | {"plan": plan.to_json()})
        if first < config.iterations:
            if first:
                logging.info("Resumed after iteration %d.", first)
            state = iterate(experiment, evaluator, checkpoints, state, first, execution, workdir)
        else:
            logging.info(
                "%s is complete with %d iterations: nothing is left to do. To go on, raise "
                "--config.iterations=%d.",
                *(workdir, first, config.iterations),
            )
    picture = epath.Path(workdir) / "before_after.png"
    complete, trained = int(state.step) >= config.iterations, int(state.step) > first
    drawn = not trained and processes.true_everywhere(picture.exists())
    if complete and evaluator.prompts and not drawn:
        draw_before_after(evaluator, experiment.merge(state.evaluation_params), picture)


def iterate(experiment, evaluator, checkpoints, state, first: int, execution: str, workdir: str):
    """The training loop: from iteration `first` to the last, or until it is told to stop.

    Returns:
      The last state, which is saved.
    """
    config = experiment.config
    timer = PhaseTimer()
    step = make_train_step(experiment.algorithm, state, execution, timer)
    images_per_step = config.batch_size * len(experiment.task_names)

    def evaluate(state) -> tuple[dict[str, float], dict]:
        with timer.phase("evaluation"):
            unet = experiment.merge(state.evaluation_params)
            return evaluator.watch(experiment.policy.params | {"unet": unet})

    with (
        contextlib.closing(MetricWriter(workdir, first + 1 if first else 0)) as writer,
        PreemptionGuard() as guard,
        Progress(config.iterations, first) as progress,
    ):
        try:
            if first == 0:
                scores, grids = evaluate(state)
                writer.scalars(0, scores | timer.collect())
                writer.images(0, grids)
            following = None
            for done in range(first + 1, config.iterations + 1):
                begun = time.monotonic()
                batch = following or experiment.batch(done - 1)
                ahead = isinstance(state, TrainStateAhead) and done < config.iterations
                following = experiment.batch(done) if ahead else None
                state, metrics = step(state, experiment.frozen, batch, following)
                metrics = jax.device_get(metrics)
                values = summary.summarise(
                    metrics, experiment.task_names, experiment.algorithm.hyperparameters
                )
                summary.check_finite(values, metrics, experiment.task_names, config.batch_size)
                values["images_per_second"] = images_per_step / (time.monotonic() - begun)
                rewards = {name: values[f"{name}/reward_mean"] for name in experiment.task_names}
                progress.update(rewards, values["images_per_second"])
                stopping, last = guard.should_stop(), done == config.iterations
                scores, grids = {"best": math.nan}, {}  # A checkpoint's score is of its parameters.
                try:
                    if last or (done % config.evaluation.every == 0 and not stopping):
                        scores, grids = evaluate(state)
                        values |= scores
                        # Evaluating may take as long as an iteration.
                        stopping = guard.should_stop()
                finally:  # An evaluation that fails takes nothing with it.
                    writer.scalars(done, values | timer.collect())
                writer.images(done, grids)
                if stopping or last or done % config.checkpoint.every == 0:
                    checkpoints.save(done, state, {"best": scores["best"]})
                if stopping:
                    break
            # Told to stop, or again, it still completes what it is saving.
            checkpoints.wait()
        except ScorerError as error:
            done = int(state.step)
            checkpoints.save(done, state, {"best": math.nan})
            checkpoints.wait()
            mend = f"Iteration {done} is saved: mend the scorer, and the same command goes on."
            raise ScorerError(f"{error} {mend}") from error
    return state


def main(_):
    with programs.clear_errors():
        start.start_devices()
        start.use_compilation_cache(WORKDIR.value)
        train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    programs.run(main)
