"""Images a second of the fused step, beside its phases with the images brought to the host.

    JAX_PLATFORMS=cpu python -m benchmarks.fusion [--world=emoji_flow]

The same functions on the same batches, in turns: once as one compiled program, once as separate
programs for sampling, scoring and each update, between which the images go to the host and back, as
where reward models are not part of the graph. Compilation is left out.
"""

import dataclasses
import functools
import statistics
import time

import jax
import numpy as np
from absl import app, flags

from configs import worlds
from diffusionrl_jax.command_line import start
from diffusionrl_jax.data.prompt_index import cache_folder
from diffusionrl_jax.distributed.mesh import batch_sharding, place
from diffusionrl_jax.experiments import experiment as experiments
from diffusionrl_jax.learning.algorithm import Algorithm
from diffusionrl_jax.learning.execution import fused_program, phase_programs
from diffusionrl_jax.learning.phases import iteration

WORLD = flags.DEFINE_enum("world", "emoji", list(worlds.EMOJI), "Which of the emoji worlds.")
IMAGES = flags.DEFINE_integer("images", 40, "Of a task; a multiple of 20 and of the devices.", 20)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Of measurement, after one to compile.", 1)


def separate_step(algorithm: Algorithm, state):
    """An iteration as separate programs, with the images on the host in between."""
    programs, by_task = phase_programs(algorithm, state), batch_sharding(algorithm.mesh, axis=1)

    def sample(*arguments):
        samples = programs.sample(*arguments)
        return samples.replace(images=place(np.asarray(samples.images), by_task))

    def score(*arguments):
        return place(np.asarray(programs.score(*arguments)), by_task)

    def updates(phases, state, frozen, prepared):
        for examples, text in prepared.lessons:
            for index in range(len(examples.weight)):
                state, _ = phases.update(state, frozen, examples, text, index)
        return state, {}

    phases = dataclasses.replace(programs, sample=sample, score=score)
    return functools.partial(iteration, phases, updates=updates)


def main(_):
    start.set_virtual_devices()
    config = worlds.EMOJI[WORLD.value]()
    config.batch_size = IMAGES.value
    experiment = experiments.build(config).with_pictures(str(cache_folder()))
    algorithm = experiment.algorithm
    states = {name: experiment.init_state() for name in ("fused", "separate")}
    steps = {
        "fused": fused_program(algorithm, states["fused"]),
        "separate": separate_step(algorithm, states["separate"]),
    }
    images = config.batch_size * len(config.tasks)
    speeds = {name: [] for name in steps}
    for index in range(ROUNDS.value + 1):
        for name, step in steps.items():
            batch = experiment.batch(index)
            begun = time.perf_counter()
            states[name], _ = jax.block_until_ready(step(states[name], experiment.frozen, batch))
            speeds[name].append(images / (time.perf_counter() - begun))
            print(f"{name}: {speeds[name][-1]:.2f} images/s", flush=True)
    fused, separate = (speeds[name][1:] for name in ("fused", "separate"))
    ratios = [mine / its for mine, its in zip(fused, separate, strict=True)]
    kind = jax.devices()[0].device_kind
    print(f"{WORLD.value}, {images} images an iteration on {jax.device_count()} x {kind}:")
    print(f"fused {statistics.median(fused):.2f} images/s")
    print(f"separate {statistics.median(separate):.2f} images/s")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    app.run(main)
