"""Refuses what does not fit in a config, before compute is spent."""

import itertools
from collections.abc import Iterable, Sequence

from absl import logging
from jax.sharding import AbstractMesh, Mesh

from diffusionrl_jax import algorithms
from diffusionrl_jax.data import prompts
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.distributed.mesh import check_batch
from diffusionrl_jax.experiments import fields, shared_prefix
from diffusionrl_jax.experiments.base_pictures import BASE, picture_count
from diffusionrl_jax.learning.advantages import BY_GROUP
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_to_image import TextToImage, warn_of_cut
from diffusionrl_jax.rewards import Reward, scoring
from diffusionrl_jax.rewards.scorers import (
    check_prompts,
    check_scorer,
    is_normalised,
    is_of_ones_own,
    sharing,
)
from diffusionrl_jax.rewards.statistical_parity import LEAVE_ONE_OUT

# So many prompts are looked at before a run, or as many as it draws if these are more. It takes
# some seconds.
MOST_CHECKED = 2**20
# The tokens of so many prompts are counted, which takes longer.
MOST_COUNTED = 2**15
# The fields of config.microbatch that are of all tasks' samples together.
OF_ALL_TASKS = ("sample", "decode")


def fsdp(config: Config) -> int:
    """Returns `config.mesh.fsdp`, or 1 if `planning.resolve` has not been asked to choose it."""
    return config.mesh.fsdp or 1


def remat(config: Config) -> str:
    """Returns `config.remat`, or "none" if `planning.resolve` has not been asked to choose it."""
    return "none" if config.remat == "auto" else config.remat


def size(config: Config) -> tuple[int, int] | None:
    """Returns the height and width of pictures in pixels; None is the model's own size.

    Raises:
      UserError: one of them is set, and the other is not.
    """
    height, width = config.sampler.height, config.sampler.width
    if bool(height) != bool(width):
        raise UserError(
            f"config.sampler.height={height} and width={width} must both be set, or both be 0, the "
            "model's own size."
        )
    return (height, width) if height else None


def differentiated_in_groups(config: Config) -> list[str]:
    """Returns the tasks whose reward may compare the images of a prompt, and is differentiated.

    They are those of a reward of the user's own: of the shipped ones, those that compare images
    have no gradient.
    """
    return [
        name
        for method, tasks in algorithms.tasks_by_method(config).items()
        if algorithms.needs_of_method(config, method).reward_gradient
        for name in tasks
        if is_of_ones_own(config.tasks[name].scorer)
    ]


def gathers_by_blocks(config: Config) -> bool:
    """Returns whether `config.mesh.gather` is "blocks"; `planning.resolve` chooses for "auto"."""
    return config.mesh.gather == "blocks"


def check(config: Config, mesh: Mesh | AbstractMesh) -> None:
    """Refuses a config that does not fit itself or the devices.

    Raises:
      UserError: something does not fit; it says what, and the mend.
    """
    check_experiment(config, mesh)
    check_microbatches(config, mesh.size)
    _check_rounding(config, mesh.size)
    compared = "its reward may compare them"
    _check_groups(config, config.tasks, mesh.size, "score", compared)
    _check_groups(config, differentiated_in_groups(config), mesh.size, "differentiate", compared)
    for method, tasks in algorithms.tasks_by_method(config).items():
        if algorithms.needs_of_method(config, method).groups:
            _check_groups(config, tasks, mesh.size, "train", f"{method} trains on them together")
    needs = algorithms.needs_of(config)
    if needs.pairs:
        _check_pairs(config, mesh.size)
    if needs.branches:
        shared_prefix.check_rounding(config, mesh.size)


def check_experiment(config: Config, mesh: Mesh | AbstractMesh) -> None:
    """Refuses what `check` refuses, except for how the work is divided.

    Raises:
      UserError: something does not fit; it says what, and the mend.
    """
    _check(config)
    for name, task in config.tasks.items():
        check_batch(f"config.batch_size (task {name})", config.batch_size, mesh, task.group_size)
    shared_prefix.check_fields(config, mesh.size)


def warn_of_guidance(config: Config) -> None:
    """Warns of methods that were published for training without guidance, where there is some."""
    scale = config.sampler.guidance_scale
    for name in algorithms.tasks_by_method(config):
        if scale > 1 and name in algorithms.UNGUIDED:
            logging.warning(
                "The method %s trains what guidance makes of the output, at config.sampler."
                "guidance_scale=%g. It was published for training without: its numbers may not "
                "suit, and --config.sampler.guidance_scale=1 draws and trains without.",
                *(name, scale),
            )


def check_evaluation(config: Config, mesh: Mesh | AbstractMesh) -> None:
    """Refuses evaluation sets that do not fit the devices, and scorers that are of no use there.

    Raises:
      UserError: a set or a name does not fit, or a scorer tells nothing; it names it, and where it
        is.
    """
    evaluation = config.evaluation
    for name, chosen in evaluation.sets.items():
        images = f"config.evaluation.sets.{name}.images"
        check_batch(images, chosen.images, mesh, chosen.group_size)
        for scorer in chosen.scorers:
            if scorer not in evaluation.scorers:
                raise UserError(
                    f"config.evaluation.sets.{name} names the scorer {scorer!r}, which is not "
                    f"in config.evaluation.scorers: {sorted(evaluation.scorers)}."
                )
            if is_normalised(evaluation.scorers[scorer]):
                raise UserError(
                    f"config.evaluation.scorers.{scorer} is a normalised sum, whose mean is 0 "
                    "whatever is drawn: name its parts, or leave normalised out."
                )
    scored = {f"{name}/{scorer}" for name, one in evaluation.sets.items() for scorer in one.scorers}
    if unknown := set(evaluation.best) - scored:
        raise UserError(f"config.evaluation.best names {sorted(unknown)}: see {sorted(scored)}.")
    used = {name.rpartition("/")[2] for name in scored}
    if evaluation.sets and (unknown := set(evaluation.head_to_head) - used):
        raise UserError(
            f"config.evaluation.head_to_head names {sorted(unknown)}, by which no set is scored: "
            f"see {sorted(used)}."
        )


def _check(config: Config) -> None:
    fields.check(config)
    size(config)
    if not config.tasks:
        raise UserError("config.tasks is empty: name at least one task.")
    algorithms.check(config)
    if not (algorithms.needs_of(config).updates or config.pretraining.weight):
        raise UserError(
            "Nothing is trained: set the weight of a task or config.pretraining.weight above 0."
        )
    window = config.sampler.window
    if window and "policy_gradient" not in algorithms.tasks_by_method(config):
        raise UserError(
            f"config.sampler.window={window} is for the method policy_gradient, which trains on "
            "steps of the chain: set it to 0."
        )
    if (scale := config.sampler.guidance_scale) < 1:
        raise UserError(
            f"config.sampler.guidance_scale={scale} must be 1, no guidance, or more to be trained: "
            "less draws as 1 does in sample, and in the formula takes the prompt away."
        )
    if config.pretraining.weight and not config.pretraining.pictures:
        raise UserError(
            "config.pretraining.pictures is empty: name some as docs/data.md says, or set "
            "config.pretraining.weight=0 to train without."
        )
    if config.pretraining.weight and config.pretraining.pictures.startswith(BASE):
        picture_count(config)
    for scorer in (task.scorer for task in config.tasks.values()):
        check_scorer(scorer)
    if not algorithms.needs_of(config).pairs:
        for method, tasks in algorithms.tasks_by_method(config).items():
            for name in tasks:
                _check_shared_scores(config, name, method)
    for scorer in config.evaluation.scorers.values():
        check_scorer(scorer)


def _check_shared_scores(config: Config, name: str, method: str) -> None:
    """Refuses a task in which the images of a prompt are compared by a score that they share.

    Raises:
      UserError: a reward of the task would teach nothing; it says why, and the mend.
    """
    comparison = _comparison(config, name, method)
    rewards = sharing(config.tasks[name].scorer, normalised=comparison is not None)
    if not rewards:
        return
    by, mend = comparison or (
        f"The normalised sum config.tasks.{name}.scorer",
        "leave its normalised out",
    )
    # The other rewards that share one score have no other credit.
    if set(rewards) == {"statistical_parity"}:
        mend = f"set credit={LEAVE_ONE_OUT!r} in its make_scorer, or {mend}"
    raise UserError(
        f"{by} compares the images of a prompt, all of which have one score by "
        f"{' and '.join(rewards)}, so that nothing would be learned from it: {mend}."
    )


def _comparison(config: Config, name: str, method: str) -> tuple[str, str] | None:
    """Returns what compares a task's images of a prompt, and how it is left out; None if nothing.

    Normalised sums of rewards, which compare them in any case, are not looked at.
    """
    needs = algorithms.needs_of_method(config, method)
    normalisation = config.tasks[name].normalisation
    weighs = method in ("raft", "reward_weighted")  # By rewards that are not normalised.
    takes_best = method == "raft" or config.algorithm.reward_weighted.weighting == "best"
    # With a shared prefix, whose method takes steps, groups are but held together.
    compares = needs.groups and not needs.steps
    if compares or (weighs and takes_best):
        return f"The method {method}", f"set config.tasks.{name}.algorithm to another one"
    if normalisation in BY_GROUP and not (weighs or needs.reward_gradient):
        field = f"config.tasks.{name}.normalisation"
        return f"{field}={normalisation!r}", f"set {field}='batch'"
    return None


def check_microbatches(config: Config, devices: int) -> None:
    """Refuses a microbatch that does not divide what a device takes at a time.

    Raises:
      UserError: one does not; it names the field.
    """
    share = config.batch_size // devices
    of_all_tasks = len(config.tasks) * share
    shares = dict.fromkeys(config.microbatch, share) | dict.fromkeys(OF_ALL_TASKS, of_all_tasks)
    for name, samples in shares.items():
        size = config.microbatch[name]
        if 0 < size < samples and samples % size:
            raise UserError(
                f"config.microbatch.{name}={size} must divide the {samples} samples that each "
                f"device has at a time, of a batch_size of {config.batch_size} on {devices} "
                "devices; or be 0 to be chosen."
            )


def _check_rounding(config: Config, devices: int) -> None:
    """Refuses microbatches that make sampling and training round differently.

    They round alike only if the denoiser sees equally many samples in both.
    """
    share = config.batch_size // devices
    shares = {"sample": len(config.tasks) * share, "train": share}
    sizes = {name: min(config.microbatch[name] or all_, all_) for name, all_ in shares.items()}
    if config.dtype != "float32" and sizes["sample"] != sizes["train"]:
        raise UserError(
            f"In {config.dtype} the ratio at unchanged parameters is 1 only if sampling and "
            f"training see equally many samples at a time: a device samples {sizes['sample']} and "
            f"trains on {sizes['train']}. Set microbatch.sample and microbatch.train to one number."
        )


def _check_groups(
    config: Config, tasks: Iterable[str], devices: int, field: str, reason: str
) -> None:
    """Refuses a microbatch that does not hold whole groups of these tasks."""
    size, share = config.microbatch[field], config.batch_size // devices
    for name in tasks:
        task = config.tasks[name]
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


def _check_pairs(config: Config, devices: int) -> None:
    """Refuses a division that takes pairs apart."""
    size, share = config.microbatch.train, config.batch_size // devices
    reason = f"{next(iter(algorithms.tasks_by_method(config)))} learns from pairs"
    if share % 2:
        raise UserError(
            f"config.batch_size={config.batch_size} must be a multiple of {2 * devices}, whole "
            f"pairs on each of {devices} devices: {reason}."
        )
    if 0 < size < share and size % 2:
        raise UserError(
            f"config.microbatch.train={size} must be even, or 0 to be chosen: {reason}."
        )


def check_task_prompts(
    name: str, config: Config, source: prompts.PromptSource, reward: Reward, model: TextToImage
) -> None:
    """Shows a task's reward the prompts of its source: all, or if they are too many those drawn.

    A warning says how many of them, or of the first of them, are longer than what the model reads.

    Args:
      name: the task's name.
      config: see `experiments/config.py`.
      source: the task's prompts.
      reward: the task's reward.
      model: the model that reads the prompts.

    Raises:
      UserError: the reward refuses a prompt; the message names the task.
    """
    task = config.tasks[name]
    drawn = config.iterations * (config.batch_size // task.group_size)
    try:
        check_prompts(reward, prompts.first_prompts(source, max(drawn, MOST_CHECKED)))
    except ValueError as error:
        raise UserError(f"config.tasks.{name}.prompts={task.prompts!r}: {error}") from None
    counted = itertools.islice(prompts.first_prompts(source, MOST_COUNTED), MOST_COUNTED)
    warn_of_cut(model, counted, f"config.tasks.{name}.prompts={task.prompts!r}")


def check_reward(
    name: str,
    scorer: Config,
    loaded: tuple[Reward, Parameters],
    image_shape: tuple[int, int, int],
    texts: Sequence[str],
) -> None:
    """Has a reward of the user's own score pictures of which only the shapes exist.

    Args:
      name: the scorer's name in the config, for messages.
      scorer: the scorer, from `make_scorer` or `make_weighted_sum`. Of shipped rewards nothing is
        asked.
      loaded: the reward and its parameters.
      image_shape: [height, width, 3].
      texts: a few prompts, in whole groups.

    Raises:
      UserError: what the reward prepares or returns does not fit, or it raises.
    """
    if is_of_ones_own(scorer):
        try:
            scoring.check_shapes(*loaded, image_shape, texts)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error.__cause__
