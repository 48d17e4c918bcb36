"""From a config to the programs that an iteration is made of, with their arguments' shapes."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from diffusionrl_jax.costs import abstract, mathematics
from diffusionrl_jax.costs.abstract import AbstractExperiment, Shapes
from diffusionrl_jax.distributed.mesh import (
    abstract_arrays,
    batch_sharding,
    make_mesh,
    parameter_sharding,
    replicated,
)
from diffusionrl_jax.experiments import checks
from diffusionrl_jax.learning.execution import fused_program, update_program
from diffusionrl_jax.learning.iteration import Samples

WHOLE = "whole step"


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of an iteration.

    Attributes:
      name: of the part. Those that share a program differ in their names and repetitions alone.
      function: jitted.
      arguments: trees of sharded `jax.ShapeDtypeStruct`.
      repetitions: calls in an iteration.
      resident: bytes that a chip holds meanwhile, the arguments among them, but for temporaries
        and outputs: a sum of shapes, without the padding that a compiler may add.
    """

    name: str
    function: Callable
    arguments: tuple[Any, ...]
    repetitions: int
    resident: int


def bytes_per_chip(tree: Shapes) -> int:
    """What a tree of sharded shapes takes on each chip."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def whole_step(experiment: AbstractExperiment) -> Phase:
    """An iteration as one program."""
    arguments = (experiment.state, experiment.frozen, experiment.batch)
    fused = fused_program(experiment.algorithm, experiment.state)
    return Phase(WHOLE, fused, arguments, 1, bytes_per_chip((arguments, experiment.kept)))


def make_phases(experiment: AbstractExperiment) -> list[Phase]:
    """An iteration as one program each for what differs in its resources.

    They are the functions that the fused step is composed of: "sample" (the text encoder and the
    chain), "decode" (a part of "score" where no image is kept), "score <task>", "prepare"
    (advantages, what is trained on, the pretraining pictures' captions), "update" and "pretrain"
    (one program), "finish" (the average).
    """
    algorithm, batch = experiment.algorithm, experiment.batch
    state, frozen, mesh = experiment.state, experiment.frozen, algorithm.mesh
    tasks, count = batch.input_ids.shape[:2]
    rows, by_task, one = batch_sharding(mesh), batch_sharding(mesh, axis=1), replicated(mesh)
    always = bytes_per_chip((state, frozen, batch, experiment.kept))
    phases = []

    def add(name, function, *arguments, held: Shapes = (), **options) -> Shapes:
        """Adds a phase; `held` is what is alive besides what always is."""
        function = jax.jit(function, **options)
        resident = always + bytes_per_chip(held)
        phases.append(Phase(name, function, arguments, 1, resident))
        return jax.eval_shape(function, *arguments)

    drawn = add(
        "sample",
        algorithm.draw,
        *(state.params, frozen, batch.input_ids, state.step),
        out_shardings=rows,
    )
    latents, *drawn = abstract_arrays(drawn, rows)
    scored, networks = latents, (frozen.vae,)
    if not algorithm.decodes_to_score(count):
        scored = add(
            "decode", algorithm.decode, frozen, latents, held=(latents, drawn), out_shardings=rows
        )
        scored, networks = abstract_arrays(scored, rows), ()
    score = algorithm.score_latents if networks else algorithm.score_task
    of_task = jax.ShapeDtypeStruct((count, *scored.shape[1:]), scored.dtype, sharding=rows)
    for index, name in enumerate(experiment.task_names):
        add(
            f"score {name}",
            functools.partial(score, index),
            *(frozen.rewards[index], *networks, of_task, batch.reward_inputs[index]),
            held=(drawn, scored),
            out_shardings=rows,
        )
    unflatten = lambda leaf: jax.ShapeDtypeStruct(
        (tasks, count, *leaf.shape[1:]), leaf.dtype, sharding=by_task
    )
    samples = jax.tree.map(unflatten, Samples(drawn[0], None, drawn[1]))
    rewards = unflatten(jax.ShapeDtypeStruct((tasks * count,), jnp.float32))
    prepared = add(
        "prepare",
        algorithm.prepare,
        *(frozen, samples, rewards, batch, state.step, state.past_rewards),
        held=samples,
    )
    updates, text = (
        jax.tree.map(lambda leaf: abstract_arrays(leaf, by_task if leaf.ndim > 1 else one), tree)
        for tree in prepared[:2]
    )
    pretraining = 0 if batch.pretraining is None else 1
    repetitions = {"update": updates.task.shape[0] - pretraining, "pretrain": pretraining}
    update = update_program(algorithm, state)
    index = jax.ShapeDtypeStruct((), jnp.int32, sharding=one)
    arguments = (state, frozen, updates, text, index)
    for name, times in repetitions.items():
        if times:
            resident = always + bytes_per_chip((updates, text))
            phases.append(Phase(name, update, arguments, times, resident))
    if state.ema_params is not None:
        shardings = parameter_sharding(mesh, state)
        add("finish", algorithm.finish, state, donate_argnums=0, out_shardings=shardings)
    return phases


def plain_experiment(config: ml_collections.ConfigDict) -> AbstractExperiment:
    """A config's mathematics: on one device, without rematerialisation and attention kernels."""
    config = ml_collections.ConfigDict(config.to_dict())
    # 1 divides any batch; what is scored at a time says which phase decodes.
    score = checks.score_microbatch(config)
    one = {"sample": 1, "decode": 1, "score": score, "train": 1}
    config.update(remat="none", attention="dot_product", mesh={"fsdp": 1}, microbatch=one)
    return abstract.build(config, make_mesh(1, jax.local_devices(backend="cpu")[:1]))


def operations(phases: Sequence[Phase]) -> dict[str, float]:
    """Phase -> operations of one call that its mathematics needs; of phases without kernels."""
    counted = {}  # Phases that share a program are counted once.
    for phase in phases:
        if phase.function not in counted:
            counted[phase.function] = mathematics.operations(phase.function, *phase.arguments)
    return {phase.name: counted[phase.function] for phase in phases}
