"""Puts an experiment's parts together, whether they are arrays or their shapes alone."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.distributed.mesh import (
    abstract_arrays,
    batch_sharding,
    frozen_sharding,
    parameter_sharding,
    replicated,
)
from diffusionrl_jax.experiments.algorithm import initial_state, make_algorithm, needs_base
from diffusionrl_jax.learning.adaptation import make_lora
from diffusionrl_jax.learning.algorithm import Algorithm
from diffusionrl_jax.learning.iteration import Batch, Frozen
from diffusionrl_jax.learning.state import TrainState
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_to_image import TextToImage
from diffusionrl_jax.rewards import Reward

# Takes a tree and its shardings. It is `mesh.place`, or `mesh.abstract_arrays` for shapes alone.
Put = Callable[[Any, Any], Any]


def assemble(
    config: Config,
    model: TextToImage,
    params: dict[str, Parameters],
    mesh: Mesh,
    rewards: Sequence[tuple[Reward, Parameters]],
    put: Put,
) -> tuple[Algorithm, Frozen]:
    """Makes the iteration's functions, and the parameters that do not change.

    Args:
      config: see `experiments/config.py`.
      model: the networks.
      params: the networks' parameters, with their shardings.
      mesh: the devices, or those of a topology.
      rewards: one reward per task, with its parameters.
      put: brings the rewards' parameters to the devices.

    Returns:
      The algorithm, and the frozen parameters.

    Raises:
      UserError: a field does not fit.
    """
    denoiser = params[model.denoiser_name]
    if (lora := make_lora(config)) is not None:
        lora.kernels(denoiser)  # Refuses targets that are not there.
    of_rewards = tuple(of_reward for _, of_reward in rewards)
    frozen = Frozen(
        text_encoder=params["text_encoder"],
        vae=params["vae"],
        rewards=put(of_rewards, frozen_sharding(mesh, of_rewards, config.mesh.split_frozen)),
        empty_ids=put(model.tokenize([""])[0], replicated(mesh)),
        base=denoiser if needs_base(config) else None,
    )
    return make_algorithm(config, model, mesh, [reward for reward, _ in rewards]), frozen


def abstract_state(config: Config, denoiser: Parameters, mesh: Mesh) -> TrainState:
    """Returns the train state's shapes and shardings, a tree of `jax.ShapeDtypeStruct`.

    Args:
      config: see `experiments/config.py`.
      denoiser: the denoiser's parameters that training starts from, or their shapes.
      mesh: the devices.
    """
    shapes = jax.eval_shape(functools.partial(initial_state, config), denoiser)
    return abstract_arrays(shapes, parameter_sharding(mesh, shapes))


def put_batch(
    mesh: Mesh, put: Put, *, input_ids: Any, reward_inputs: Any, prompt_places: Any, **others: Any
) -> Batch:
    """Brings a batch to the devices.

    Args:
      mesh: the devices.
      put: brings a tree to the devices.
      input_ids, reward_inputs, prompt_places: as `Batch` has them, arrays on the host or shapes.
      **others: the other fields of `Batch`. Pictures are on the devices already, since they come to
        them as they are read.
    """
    rows = batch_sharding(mesh)
    return Batch(
        input_ids=put(input_ids, batch_sharding(mesh, axis=1)),
        reward_inputs=put(reward_inputs, rows),
        prompt_places=put(prompt_places, rows),
        **others,
    )


def judges(config: Config) -> list[tuple[Config, int]]:
    """Returns the scorers that evaluation loads since no task has them, each with a group size."""
    evaluation = config.evaluation
    used = {
        (name, chosen.group_size): evaluation.scorers[name]
        for chosen in evaluation.sets.values()
        for name in chosen.scorers
        if name in evaluation.scorers  # `Evaluator` refuses others.
    }
    of_tasks = [(task.scorer.to_dict(), task.group_size) for task in config.tasks.values()]
    return [
        (scorer, group_size)
        for (_, group_size), scorer in used.items()
        if (scorer.to_dict(), group_size) not in of_tasks
    ]
