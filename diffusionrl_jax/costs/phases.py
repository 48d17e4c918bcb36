"""Takes a config apart into the programs of an iteration, with the shapes of their arguments."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffusionrl_jax.costs import abstract, mathematics
from diffusionrl_jax.costs.abstract import AbstractExperiment, Shapes
from diffusionrl_jax.data.config_type import Config, copied
from diffusionrl_jax.distributed.mesh import (
    abstract_arrays,
    batch_sharding,
    make_mesh,
    parameter_sharding,
    replicated,
)
from diffusionrl_jax.experiments.divisions import trained_at_a_time
from diffusionrl_jax.learning.execution import fused_program, phase_programs
from diffusionrl_jax.learning.iteration import Samples
from diffusionrl_jax.learning.phases import Phases, Prepared, iteration
from diffusionrl_jax.learning.state import DRAWING, TRAILING

WHOLE = "whole step"


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of an iteration.

    Attributes:
      name: the part's name. Phases that share a program differ only in their names and repetitions.
      function: the part's program, a jitted function.
      arguments: the program's arguments, trees of sharded `jax.ShapeDtypeStruct`.
      repetitions: how often the program is called in an iteration.
      resident: the bytes that a chip holds meanwhile, the arguments among them, without temporaries
        and outputs. It is a sum of shapes, without the padding that a compiler may add.
    """

    name: str
    function: Callable
    arguments: tuple[Any, ...]
    repetitions: int
    resident: int


def bytes_per_chip(tree: Shapes) -> int:
    """Returns the bytes that a tree of sharded shapes takes on each chip."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def whole_step(experiment: AbstractExperiment) -> Phase:
    """Returns an iteration as one program."""
    arguments = (experiment.state, experiment.frozen, experiment.batch)
    fused = fused_program(experiment.algorithm, experiment.state)
    return Phase(WHOLE, fused, arguments, 1, bytes_per_chip((arguments, experiment.kept)))


def make_phases(experiment: AbstractExperiment) -> list[Phase]:
    """Returns an iteration as several programs, one for each part that needs other resources.

    They are the functions that the fused step is composed of, in the order of `phases.iteration`:
    "sample" (the text encoder and the chain), "decode" (a part of "score" where no image is kept),
    "score <task>", "prepare" (the advantages, the examples, and the pretraining pictures'
    captions), "update" and "pretrain" (which share a program unless their batches differ in size),
    and "finish" (the parameters' average, if there is one).
    """
    recorder = _Recorder(experiment)
    phases = Phases(
        sample=recorder.sample,
        score=recorder.score,
        prepare=recorder.prepare,
        update=experiment.algorithm.phases().update,
        finish=recorder.finish,
    )
    batch = experiment.batch
    iteration(phases, experiment.state, experiment.frozen, batch, updates=recorder.updates)
    return recorder.found


class _Recorder:
    """An iteration's phases on shapes: each is written down, and returns its results' shapes."""

    def __init__(self, experiment: AbstractExperiment):
        self.experiment, self.found = experiment, []
        self.mesh = experiment.algorithm.mesh
        self.rows, self.by_task = batch_sharding(self.mesh), batch_sharding(self.mesh, axis=1)
        self.always = bytes_per_chip(
            (experiment.state, experiment.frozen, experiment.batch, experiment.kept)
        )

    def _add(self, name, function, *arguments, held: Shapes = (), **options) -> Shapes:
        """Adds a phase and returns its results' shapes.

        `held` is what is alive meanwhile, besides what always is.
        """
        function = jax.jit(function, **options)
        resident = self.always + bytes_per_chip(held)
        self.found.append(Phase(name, function, arguments, 1, resident))
        return jax.eval_shape(function, *arguments)

    def sample(self, params, frozen, input_ids, step) -> Samples:
        experience, (tasks, count) = self.experiment.algorithm.experience, input_ids.shape[:2]
        if not experience.sampling.draws:
            return experience.sample(params, frozen, input_ids, step)
        arguments = params, frozen, input_ids, step
        drawn = self._add("sample", experience.draw, *arguments, out_shardings=self.rows)
        latents, steps, text = abstract_arrays(drawn, self.rows)
        scoring = experience.scoring
        images, later = None, scoring.decodes_to_score(count)
        if not later:
            held = latents, steps, text
            images = self._add(
                "decode", scoring.decode, frozen, latents, held=held, out_shardings=self.rows
            )
        unflatten = lambda leaf: jax.ShapeDtypeStruct(
            (tasks, leaf.shape[0] // tasks, *leaf.shape[1:]), leaf.dtype, sharding=self.by_task
        )
        keeps = experience.sampling.keeps_latents
        samples = Samples(steps, images, text, latents if later or keeps else None, keeps)
        return jax.tree.map(unflatten, samples)

    def score(self, frozen, samples, reward_inputs) -> Shapes:
        scoring, names = self.experiment.algorithm.experience.scoring, self.experiment.task_names
        if samples.text is None:
            return jax.ShapeDtypeStruct((len(names), 0), jnp.float32)
        later = samples.images is None
        scored = samples.latents if later else samples.images
        networks = (frozen.vae,) if later else ()
        score = scoring.score_latents if later else scoring.score_task
        of_task = jax.ShapeDtypeStruct(scored.shape[1:], scored.dtype, sharding=self.rows)
        for index, name in enumerate(names):
            self._add(
                f"score {name}",
                functools.partial(score, index),
                *(frozen.rewards[index], *networks, of_task, reward_inputs[index]),
                held=(samples.steps, samples.text, scored),
                out_shardings=self.rows,
            )
        return jax.ShapeDtypeStruct(scored.shape[:2], jnp.float32, sharding=self.by_task)

    def prepare(self, params, frozen, samples, rewards, batch, step, memory) -> Prepared:
        prepare = self.experiment.algorithm.phases().prepare
        arguments = params, frozen, samples, rewards, batch, step, memory
        prepared = self._add("prepare", prepare, *arguments, held=samples)
        one = replicated(self.mesh)
        place = lambda leaf: abstract_arrays(leaf, self.by_task if leaf.ndim > 1 else one)
        return jax.tree.map(place, prepared)

    def updates(self, phases, state, frozen, prepared):
        del phases
        index = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(self.mesh))
        resident = self.always + bytes_per_chip(prepared.lessons)
        pretraining = 0 if self.experiment.batch.pretraining is None else 1
        for number, (examples, text) in enumerate(prepared.lessons, start=1):
            function = phase_programs(self.experiment.algorithm, state).update
            arguments = state, frozen, examples, text, index
            # The last update is that on pictures.
            last = pretraining if number == len(prepared.lessons) else 0
            for name, times in {"update": len(examples.weight) - last, "pretrain": last}.items():
                if times:
                    self.found.append(Phase(name, function, arguments, times, resident))
        return state, {}

    def finish(self, state):
        if state.ema_params is not None or {DRAWING, TRAILING} & state.memory.keys():
            shardings = parameter_sharding(self.mesh, state)
            finish = self.experiment.algorithm.phases().finish
            self._add("finish", finish, state, donate_argnums=0, out_shardings=shardings)
        return state


def plain_experiment(config: Config, devices: int = 1) -> AbstractExperiment:
    """Returns an experiment whose phases show a config's mathematics.

    It has one device, and neither rematerialisation nor attention kernels.

    Args:
      config: see `experiments/config.py`.
      devices: how many devices the phases are of that these are compared with.
    """
    config = copied(config)
    # A microbatch of 1 divides any batch, but not where groups are trained on together. That of
    # scoring is kept where it is less than a device's share: that decides which phase decodes.
    score, least = config.microbatch.score, trained_at_a_time(config, config.batch_size)[0]
    score = score if score < config.batch_size // devices else 0
    one = {"sample": least, "decode": 1, "score": score, "train": least}
    plain = {"remat": "none", "convolution": "xla", "attention": "dot_product"}
    config.update(plain, mesh={"fsdp": 1}, microbatch=one)
    return abstract.build(config, make_mesh(1, jax.local_devices(backend="cpu")[:1]))


def operations(phases: Sequence[Phase]) -> dict[str, float]:
    """Counts the operations that each phase's mathematics needs for one call.

    Args:
      phases: phases without attention kernels, such as those of `plain_experiment`.

    Returns:
      Name of a phase -> floating-point operations.
    """
    counted = {}  # Phases that share a program are counted once.
    for phase in phases:
        if phase.function not in counted:
            counted[phase.function] = mathematics.operations(phase.function, *phase.arguments)
    return {phase.name: counted[phase.function] for phase in phases}
