"""Images a second where groups share the prefix of their chains, beside groups that do not.

    JAX_PLATFORMS=cpu python -m benchmarks.shared_prefix

Two tasks of the emoji world, whose groups share their noise, on the same batches in turns: once
with each image drawn and trained on by itself, once with each group as one up to the step that is
trained on. Compilation is left out, and so is the pretraining loss, which is the same work in both.
"""

import dataclasses
import statistics
import time

import jax
import numpy as np
from absl import app, flags

from configs import emoji_policy_gradient
from diffusionrl_jax.command_line import start
from diffusionrl_jax.experiments import experiment as experiments
from diffusionrl_jax.experiments import planning
from diffusionrl_jax.experiments.experiment import Experiment
from diffusionrl_jax.learning.execution import make_train_step
from diffusionrl_jax.monitoring.progress import PhaseTimer

IMAGES = flags.DEFINE_integer("images", 160, "Of a task: a multiple of 16 times the devices.", 16)
STEPS = flags.DEFINE_integer("steps", 4, "Of the chain.", 1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Of measurement, after one to compile.", 1)
BACKWARD = 2  # A backward pass takes as long as so many forward ones.


@dataclasses.dataclass
class Run:
    """A run that is measured: its parts, its state, and the seconds of each phase so far."""

    experiment: Experiment
    timer: PhaseTimer
    state: object
    step: object
    seconds: list

    def iterate(self, index: int) -> None:
        """Makes an iteration, and keeps its seconds."""
        batch, begun = self.experiment.batch(index), time.perf_counter()
        self.state, _ = self.step(self.state, self.experiment.frozen, batch)
        whole = time.perf_counter() - begun
        self.seconds.append({"seconds/iteration": whole} | self.timer.collect())

    def passes(self, index: int) -> float:
        """Counts the denoiser's passes in an iteration, for each image."""
        experience, config = self.experiment.algorithm.experience, self.experiment.config
        _, trained = experience.trained_steps(index, config.batch_size)
        together = (np.asarray(trained) + 1) * (1 - 1 / experience.group)
        return float(STEPS.value - together.mean() + (1 + BACKWARD) / experience.group)


def make(shared_prefix: int) -> Run:
    """Returns a run of which nothing is done yet."""
    config = emoji_policy_gradient.get_config("preference,compositionality")
    config.batch_size, config.sampler.steps = IMAGES.value, STEPS.value
    config.pretraining.weight = 0.0
    config.algorithm.policy_gradient.shared_prefix = shared_prefix
    config, _ = planning.resolve(config)
    experiment, timer = experiments.build(config), PhaseTimer()
    state = experiment.init_state()
    step = make_train_step(experiment.algorithm, state, "split", timer)
    return Run(experiment, timer, state, step, [])


def main(_):
    start.set_virtual_devices()
    runs = {"apart": make(0), "shared": make(4)}
    for index in range(ROUNDS.value + 1):
        for run in runs.values():
            run.iterate(index)
    images, measured = 2 * IMAGES.value, range(1, ROUNDS.value + 1)
    kind = jax.devices()[0].device_kind
    print(f"{images} images an iteration on {jax.device_count()} x {kind}, {STEPS.value} steps:")
    for name, run in runs.items():
        passes = statistics.mean(map(run.passes, measured))
        parts = ", ".join(
            f"{part.removeprefix('seconds/')} "
            f"{images / statistics.median(run.seconds[index][part] for index in measured):.1f}"
            for part in run.seconds[0]
        )
        print(f"{name}: {passes:.2f} passes of the denoiser an image; images/s: {parts}")
    for part in runs["apart"].seconds[0]:
        apart, shared = ([run.seconds[i][part] for i in measured] for run in runs.values())
        ratios = [mine / its for mine, its in zip(apart, shared, strict=True)]
        name = part.removeprefix("seconds/")
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{name}: {statistics.median(ratios):.2f} times as fast shared ({span})")


if __name__ == "__main__":
    app.run(main)
