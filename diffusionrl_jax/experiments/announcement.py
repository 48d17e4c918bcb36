"""Says what a run is about to do, before any compute is spent."""

import math

import jax
from etils import epath

from diffusionrl_jax.algorithms import needs_of
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.files import readable_size
from diffusionrl_jax.diffusion.guidance import passes
from diffusionrl_jax.distributed import chips
from diffusionrl_jax.experiments import checks
from diffusionrl_jax.experiments.algorithm import images_per_iteration, passes_of_an_update
from diffusionrl_jax.experiments.base_pictures import BASE, picture_count
from diffusionrl_jax.experiments.experiment import Experiment
from diffusionrl_jax.experiments.planning import Plan
from diffusionrl_jax.models.families import describe_model
from diffusionrl_jax.models.parameters import count

SECONDS = {"s": 1, "hours": 3600}


def iteration_operations(experiment: Experiment) -> float:
    """Returns the denoiser's floating-point operations in an iteration, on all devices together.

    They follow from the config. Reward models, text encoder and VAE, which are some percent, are
    left out, and so is what is computed again in a backward pass, and LoRA's own gradients.

    Args:
      experiment: what is to be trained.
    """
    config, needs = experiment.config, needs_of(experiment.config)
    experience = experiment.algorithm.experience
    images = images_per_iteration(config)
    # Of a group that shares what it is trained on there is one row.
    rows = config.batch_size / experience.group
    of_update = passes_of_an_update(bool(config.lora.rank))
    learned = rows * (needs.predictions + of_update * needs.updates)
    of_step = passes(config.sampler.guidance_scale)
    # Pairs of pictures are not drawn, and are learned from without guidance.
    run = learned if needs.pairs else of_step * (images * experience.evaluations + learned)
    if config.pretraining.weight:
        run += of_step * of_update * config.batch_size
    return run * _operations(config)


def _operations(config: Config) -> float:
    """Returns the denoiser's operations for one pass over one picture."""
    tokens = config.sampler.text_tokens or None
    return describe_model(config.model, checks.size(config), tokens).network.operations


def announce(experiment: Experiment, plan: Plan, workdir: str) -> str:
    """Returns a short table of what a run is about to do.

    Args:
      experiment: what is to be trained, before its pictures are opened.
      plan: how it is divided over the devices.
      workdir: the folder that the run is kept in.

    Returns:
      Lines of text. The least seconds are a model, of the denoiser's operations at the chips' peak,
      and left out on CPUs.
    """
    config, devices = experiment.config, plan.devices
    state = experiment.abstract_state()
    denoiser = count(experiment.policy.denoiser)
    trained = f"all {denoiser:,} parameters of the denoiser"
    if config.lora.rank:
        trained = f"LoRA's {count(state.params):,} parameters beside the denoiser's {denoiser:,}"
    tasks = ", ".join(experiment.task_names)
    images = f"{images_per_iteration(config):,} images"
    if needs_of(config).pairs:
        images += " of pairs, and draws none"
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    kept = config.checkpoint
    iteration = iteration_operations(experiment)
    run = config.iterations * iteration
    lines = {
        "model": config.model,
        "tasks": tasks,
        "trained": trained,
        "devices": str(devices),
        "plan": f"{plan} (estimate, in {plan.phase})",
        **_pictures(config, plan),
        "an iteration": images + _least(iteration, plan),
        "iterations": f"{config.iterations:,}" + _least(run, plan, "hours"),
        "checkpoints": f"{epath.Path(workdir) / 'checkpoints'}, every {kept.every} iterations, "
        f"{readable_size(size)} each; the last {kept.keep_last} and the best {kept.keep_best} are "
        "kept",
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


def _pictures(config: Config, plan: Plan) -> dict[str, str]:
    """Returns the line of the pictures that the base model draws; none where it draws none."""
    if not config.pretraining.weight or not config.pretraining.pictures.startswith(BASE):
        return {}
    number = picture_count(config)
    evaluations = config.sampler.steps * passes(config.sampler.guidance_scale)
    least = _least(_operations(config) * evaluations * number, plan)
    return {"pictures": f"{number:,} of the model's own, drawn first unless they are here{least}"}


def _least(operations: float, plan: Plan, unit: str = "s") -> str:
    """Returns the least time that operations may take, or why it is not known; nothing on CPUs."""
    chip = chips.CHIPS.get(chips.KINDS.get(plan.devices.kind, plan.devices.kind))
    if plan.devices.platform == "cpu":
        return ""
    if chip is None:
        return f" (how fast a {plan.devices.kind} is at most is not known)"
    seconds = operations / plan.devices.count / chip.operations
    return f", at least {seconds / SECONDS[unit]:.3g} {unit} (model: operations at peak)"
