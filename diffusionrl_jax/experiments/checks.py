"""Refuses what does not fit in a config before compute is spent."""

import itertools
import math

from jax.sharding import AbstractMesh, Mesh

from diffusionrl_jax.algorithms import ALGORITHMS
from diffusionrl_jax.data import prompts
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.distributed.mesh import check_batch
from diffusionrl_jax.experiments.base_pictures import BASE, picture_count
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.text_to_image import TextToImage, warn_of_cut
from diffusionrl_jax.rewards import Reward
from diffusionrl_jax.rewards.scorers import check_prompts, check_scorer

# Prompts that are looked at before a run, at least: some seconds' work.
MOST_CHECKED = 2**20
# The same of those whose tokens are counted, which takes longer.
MOST_COUNTED = 2**15
GATHER = ("auto", "whole", "blocks")


def fsdp(config: Config) -> int:
    """`config.mesh.fsdp`; 1 where `planning.resolve` was to choose it, and was not asked."""
    return config.mesh.fsdp or 1


def remat(config: Config) -> str:
    """`config.remat`; "none" where `planning.resolve` was to choose it, and was not asked."""
    return "none" if config.remat == "auto" else config.remat


def gathers_by_blocks(config: Config) -> bool:
    """Whether `config.mesh.gather` is "blocks"; `planning.resolve` chooses it for "auto".

    Raises:
      UserError: it is none of these.
    """
    if (gather := config.mesh.gather) not in GATHER:
        raise UserError(f"config.mesh.gather={gather!r} must be one of {GATHER}.")
    return gather == "blocks"


def check(config: Config, mesh: Mesh | AbstractMesh) -> None:
    """Refuses a config that does not fit itself or the devices.

    Raises:
      UserError: what does not fit, and the mend.
    """
    check_experiment(config, mesh)
    _check_microbatches(config, mesh.size)
    _check_rounding(config, mesh.size)
    _check_groups(config, mesh.size, "score", "its reward may compare them")
    if ALGORITHMS[config.algorithm.name].needs(config.algorithm[config.algorithm.name]).groups:
        _check_groups(config, mesh.size, "train", f"{config.algorithm.name} compares them")


def check_experiment(config: Config, mesh: Mesh | AbstractMesh) -> None:
    """As `check`, of all but how the work is divided.

    Raises:
      UserError: what does not fit, and the mend.
    """
    _check(config)
    for name, task in config.tasks.items():
        check_batch(f"config.batch_size (task {name})", config.batch_size, mesh, task.group_size)


def _check(config: Config) -> None:
    gathers_by_blocks(config)
    if not config.tasks:
        raise UserError("config.tasks is empty: name at least one task.")
    if config.algorithm.name not in ALGORITHMS:
        raise UserError(
            f"config.algorithm.name={config.algorithm.name!r} must be one of {list(ALGORITHMS)}."
        )
    if config.algorithm.name == "policy_gradient":
        _check_policy_gradient(config)
    if config.sampler.eta > 1:
        raise UserError(f"config.sampler.eta={config.sampler.eta} must be at most 1.")
    if config.sampler.eta < 0:
        raise UserError(f"config.sampler.eta={config.sampler.eta} must be at least 0.")
    if not 1 <= (scale := config.sampler.guidance_scale) < math.inf:
        raise UserError(
            f"config.sampler.guidance_scale={scale} must be 1, no guidance, or more to be trained: "
            "less draws as 1 does in sample, and in the formula takes the prompt away."
        )
    if config.optimizer.gradient_clip < 0:
        raise UserError("config.optimizer.gradient_clip must be above 0, or 0 for no clipping.")
    for name in ("evaluation", "checkpoint"):
        if config[name].every < 1:
            raise UserError(
                f"config.{name}.every={config[name].every} must be at least 1; the last "
                "iteration's comes in any case."
            )
    if config.pretraining.weight and not config.pretraining.pictures:
        raise UserError(
            "config.pretraining.pictures is empty: name some as docs/data.md says, or set "
            "config.pretraining.weight=0 to train without."
        )
    if config.pretraining.weight and config.pretraining.pictures.startswith(BASE):
        picture_count(config)
    for task in config.tasks.values():
        check_scorer(task.scorer)


def _check_policy_gradient(config: Config) -> None:
    fields, name = config.algorithm.policy_gradient, "config.algorithm.policy_gradient"
    count, weight = fields.timesteps_per_iteration, fields.kl_weight
    if not 0 <= count <= config.sampler.steps:
        raise UserError(
            f"{name}.timesteps_per_iteration={count} must be between 0 and "
            f"config.sampler.steps={config.sampler.steps}."
        )
    if config.sampler.eta <= 0:
        raise UserError("config.sampler.eta must be above 0: without noise there is no policy.")
    if not (count or config.pretraining.weight):
        raise UserError(
            f"Nothing is trained: {name}.timesteps_per_iteration and config.pretraining.weight are "
            "both 0."
        )
    if not 0 <= weight < math.inf:
        raise UserError(
            f"{name}.kl_weight={weight} must be a finite number of 0 or more: 0 is no KL to the "
            "base model."
        )
    if weight and not count:
        raise UserError(
            f"{name}.kl_weight={weight} is of no effect with timesteps_per_iteration=0: the KL is "
            "taken at the steps that are trained on."
        )


def _check_microbatches(config: Config, devices: int) -> None:
    """A microbatch divides what a device takes at once."""
    share = config.batch_size // devices
    of_all_tasks = len(config.tasks) * share
    shares = {"sample": of_all_tasks, "decode": of_all_tasks, "score": share, "train": share}
    for name, samples in shares.items():
        size = config.microbatch.score if name == "score" else config.microbatch[name]
        if 0 < size < samples and samples % size:
            raise UserError(
                f"config.microbatch.{name}={size} must divide the {samples} samples that each "
                f"device has at a time, of a batch_size of {config.batch_size} on {devices} "
                "devices; or be 0 to be chosen."
            )


def _check_rounding(config: Config, devices: int) -> None:
    """Sampling and training round alike only if the denoiser sees equally many samples in both."""
    share = config.batch_size // devices
    shares = {"sample": len(config.tasks) * share, "train": share}
    sizes = {name: min(config.microbatch[name] or all_, all_) for name, all_ in shares.items()}
    if config.dtype != "float32" and sizes["sample"] != sizes["train"]:
        raise UserError(
            f"In {config.dtype} the ratio at unchanged parameters is 1 only if sampling and "
            f"training see equally many samples at a time: a device samples {sizes['sample']} and "
            f"trains on {sizes['train']}. Set microbatch.sample and microbatch.train to one number."
        )


def _check_groups(config: Config, devices: int, field: str, reason: str) -> None:
    """A microbatch holds whole groups."""
    size, share = config.microbatch[field], config.batch_size // devices
    for name, task in config.tasks.items():
        if 0 < size < share and size % task.group_size:
            raise UserError(
                f"config.microbatch.{field}={size} must be a multiple of task {name}'s group_size, "
                f"{task.group_size}, or 0 to be chosen: {reason}."
            )
        if field == "train" and share % task.group_size:
            unit = devices * task.group_size
            raise UserError(
                f"config.batch_size={config.batch_size} must be a multiple of {unit}, whole groups "
                f"of task {name} on each of {devices} devices: {reason}."
            )


def check_task_prompts(
    name: str, config: Config, source: prompts.PromptSource, reward: Reward, model: TextToImage
) -> None:
    """Shows a task's reward all prompts of its source, or if they are too many all that are drawn.

    A warning says how many of them, or of the first of them, the model reads a part of.

    Raises:
      UserError: the reward refuses one; the message names the task.
    """
    task = config.tasks[name]
    drawn = config.iterations * (config.batch_size // task.group_size)
    try:
        check_prompts(reward, prompts.first_prompts(source, max(drawn, MOST_CHECKED)))
    except ValueError as error:
        raise UserError(f"config.tasks.{name}.prompts={task.prompts!r}: {error}") from None
    counted = itertools.islice(prompts.first_prompts(source, MOST_COUNTED), MOST_COUNTED)
    warn_of_cut(model, counted, f"config.tasks.{name}.prompts={task.prompts!r}")
