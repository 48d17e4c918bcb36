"""Trains a text-to-image diffusion model by reinforcement learning.

    python -m diffusionrl_jax.main --config=configs/emoji.py --workdir=/tmp/emoji

Started again with the same workdir it goes on where it was.
"""

import math
import os

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from diffusionrl_jax import experiment as experiments
from diffusionrl_jax.checkpoints import (
    Checkpoints,
    PreemptionGuard,
    abstract,
    check_workdir_writable,
    write_run_information,
)
from diffusionrl_jax.distributed import start
from diffusionrl_jax.evaluation import Evaluator, best_score
from diffusionrl_jax.learning.execution import choose_execution, make_train_step
from diffusionrl_jax.monitoring.images import before_after, image_grid
from diffusionrl_jax.monitoring.metrics import MetricWriter
from diffusionrl_jax.monitoring.progress import PhaseTimer, Progress

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and pictures go.")
flags.mark_flags_as_required(["config", "workdir"])

GRID_IMAGES = 8  # of each evaluation set, in the pictures that one watches


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
    experiment = experiments.build(config, os.path.join(workdir, "cache"))
    evaluator = Evaluator(experiment.policy, config)
    checkpoints = Checkpoints(
        os.path.join(workdir, "checkpoints"),
        config.checkpoint.keep_last,
        config.checkpoint.keep_best,
        "best",
    )
    state = experiment.init_state()
    if restored := checkpoints.restore(abstract(state)):
        first, state = restored
        logging.info("Resumed after iteration %d.", first)
    else:
        first = 0
        write_run_information(workdir, config)
    timer = PhaseTimer()
    step = make_train_step(experiment.algorithm, state, choose_execution(config.execution), timer)
    numbers = experiment.algorithm.hyperparameters
    images_per_step = config.batch_size * len(experiment.task_names)
    writer = MetricWriter(workdir, first)

    def watch(iteration: int, params) -> float:
        with timer.phase("evaluation"):
            evaluation = evaluator(params)
        means = evaluation.means()
        score = best_score(means, config.evaluation.best)
        writer.scalars(iteration, means | {"best": score})
        grids = {
            name: image_grid(
                images[:: max(1, len(images) // GRID_IMAGES)][:GRID_IMAGES], GRID_IMAGES, scale=2
            )
            for name, images in evaluation.images.items()
        }
        writer.images(iteration, grids)
        return score

    saved_best = math.nan
    with PreemptionGuard() as guard, Progress(config.iterations, first) as progress:
        if first == 0:
            saved_best = watch(0, state.evaluation_params)
        for iteration in range(first, config.iterations):
            state, metrics = step(state, experiment.frozen, experiment.batch(iteration))
            metrics = jax.device_get(metrics)
            done = iteration + 1
            values = experiments.summarise(metrics, experiment.task_names, numbers)
            experiments.check_finite(values, metrics, experiment.task_names, config.batch_size)
            rewards = {name: values[f"{name}/reward_mean"] for name in experiment.task_names}
            progress.update(rewards, images_per_step)
            writer.scalars(done, values | timer.collect())
            stopping = guard.should_stop()
            last = done == config.iterations
            if last or done % config.evaluation.every == 0:
                saved_best = watch(done, state.evaluation_params)
            if stopping or last or done % config.checkpoint.every == 0:
                checkpoints.save(done, state, {"best": saved_best})
            if stopping:
                break
    checkpoints.close()
    if not stopping:
        draw_before_after(experiment, evaluator, state, workdir)
    writer.close()


def draw_before_after(experiment, evaluator: Evaluator, state, workdir: str) -> None:
    """Writes before_after.png: the same prompts and noise, by the base and by the trained model."""
    prompts = [text for texts in evaluator.prompts.values() for text in texts[::20][:4]]
    seed = experiment.config.evaluation.seed
    before, after = (
        np.asarray(evaluator.sampler(params, prompts, seed))
        for params in (experiment.policy.params["unet"], state.evaluation_params)
    )
    scale = max(1, 96 // before.shape[1])
    path = os.path.join(workdir, "before_after.png")
    before_after(before, after, prompts, scale).save(path)
    logging.info("Wrote %s", path)


def main(_):
    start.set_virtual_devices()
    train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    app.run(main)
