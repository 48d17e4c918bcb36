"""Trains a text-to-image diffusion model by reinforcement learning.

    python -m diffusionrl_jax.main --config=configs/emoji.py --workdir=/tmp/emoji

Started again with the same workdir it goes on where it was.
"""

import contextlib
import math
import os

import jax
from absl import flags, logging
from ml_collections import config_flags

from diffusionrl_jax import experiment as experiments
from diffusionrl_jax import programs, runs
from diffusionrl_jax.checkpoints import (
    PreemptionGuard,
    abstract,
    check_workdir_writable,
    write_run_information,
)
from diffusionrl_jax.distributed import start
from diffusionrl_jax.evaluation import Evaluator, best_score
from diffusionrl_jax.learning.execution import choose_execution, make_train_step
from diffusionrl_jax.models import lora
from diffusionrl_jax.monitoring.images import before_after, image_grid
from diffusionrl_jax.monitoring.metrics import MetricWriter
from diffusionrl_jax.monitoring.progress import PhaseTimer, Progress

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
    """
    check_workdir_writable(workdir)
    execution = choose_execution(config.execution)
    with contextlib.closing(runs.open_checkpoints(workdir, config)) as checkpoints:
        if checkpoints.steps():
            runs.check_same_experiment(workdir, config)
        experiment = experiments.build(config, os.path.join(workdir, "cache"))
        evaluator = Evaluator(experiment.policy, config)
        state = experiment.init_state()
        if experiment.algorithm.lora is not None:
            numbers = lora.count(state.params), lora.count(experiment.policy.params["unet"])
            logging.info("LoRA trains %d numbers beside the UNet's %d.", *numbers)
        first, state = runs.restore_state(checkpoints, abstract(state)) or (0, state)
        write_run_information(workdir, config)
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
    picture = os.path.join(workdir, "before_after.png")
    complete, trained = int(state.step) >= config.iterations, int(state.step) > first
    if complete and evaluator.prompts and (trained or not os.path.exists(picture)):
        draw_before_after(experiment, evaluator, state, picture)


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
            evaluation = evaluator(
                experiment.policy.params | {"unet": experiment.merge(state.evaluation_params)}
            )
        means = evaluation.means()
        grids = {
            name: image_grid(images, len(images), scale=2)
            for name, images in evaluation.images.items()
        }
        return means | {"best": best_score(means, config.evaluation.best)}, grids

    with (
        contextlib.closing(MetricWriter(workdir, first + 1 if first else 0)) as writer,
        PreemptionGuard() as guard,
        Progress(config.iterations, first) as progress,
    ):
        if first == 0:
            scores, grids = evaluate(state)
            writer.scalars(0, scores | timer.collect())
            writer.images(0, grids)
        for done in range(first + 1, config.iterations + 1):
            state, metrics = step(state, experiment.frozen, experiment.batch(done - 1))
            metrics = jax.device_get(metrics)
            values = experiments.summarise(
                metrics, experiment.task_names, experiment.algorithm.hyperparameters
            )
            experiments.check_finite(values, metrics, experiment.task_names, config.batch_size)
            rewards = {name: values[f"{name}/reward_mean"] for name in experiment.task_names}
            progress.update(rewards, images_per_step)
            stopping, last = guard.should_stop(), done == config.iterations
            scores, grids = {"best": math.nan}, {}  # A checkpoint's score is of its parameters.
            if last or (done % config.evaluation.every == 0 and not stopping):
                scores, grids = evaluate(state)
                values |= scores
            writer.scalars(done, values | timer.collect())
            writer.images(done, grids)
            if stopping or last or done % config.checkpoint.every == 0:
                checkpoints.save(done, state, {"best": scores["best"]})
            if stopping:
                break
    return state


def draw_before_after(experiment, evaluator: Evaluator, state, path: str) -> None:
    """Draws the same prompts with the same noise by the base and by the trained model."""
    base = experiment.policy.params
    prompts = [text for texts in evaluator.prompts.values() for text in texts[::20][:4]]
    before, after = (
        evaluator.sampler(base | {"unet": unet}, prompts, experiment.config.evaluation.seed)
        for unet in (base["unet"], experiment.merge(state.evaluation_params))
    )
    before_after(before, after, prompts, scale=max(1, 96 // before.shape[1])).save(path)
    logging.info("Wrote %s", path)


def main(_):
    start.set_virtual_devices()
    start.use_compilation_cache()
    with programs.clear_errors():
        train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    programs.run(main)
