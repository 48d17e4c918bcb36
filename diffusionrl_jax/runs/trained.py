"""Opens what has been trained: the workdir of a run, or a diffusers folder."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from diffusionrl_jax.algorithms import tasks_by_method
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.file_digests import settings_digest
from diffusionrl_jax.data.files import read_json, split_step
from diffusionrl_jax.diffusion.pipeline import Policy
from diffusionrl_jax.distributed.mesh import abstract_arrays, parameter_sharding
from diffusionrl_jax.experiments import fields
from diffusionrl_jax.experiments.algorithm import initial_state, scores_on_host
from diffusionrl_jax.experiments.config import get_config, of_earlier
from diffusionrl_jax.experiments.loading import load_policy
from diffusionrl_jax.learning.adaptation import make_lora, make_merge
from diffusionrl_jax.learning.state import TrainState
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.families import DENOISERS, STABLE_DIFFUSION, family_at
from diffusionrl_jax.models.folders import hub
from diffusionrl_jax.models.folders.hub import is_run
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.runs.checkpoints import Checkpoints

# The fields that may differ when a run is resumed: how long it trains, how it is watched, and where
# it runs.
FREE_FIELDS = (
    "iterations",
    "evaluation",
    "watch",
    "checkpoint",
    "microbatch",
    "mesh",
    "execution",
    "convolution",
    "remat",
    "attention",
    "plan",  # What was chosen for those of the fields above that were left open.
)


def open_checkpoints(workdir: str, config: Config) -> Checkpoints:
    """Opens the checkpoints of a run."""
    return Checkpoints(
        str(epath.Path(workdir) / "checkpoints"),
        config.checkpoint.keep_last,
        config.checkpoint.keep_best,
        "best",
        scored_by(config),
    )


def scored_by(config: Config) -> str:
    """Returns a name of what a checkpoint's score is by: a digest of what `config.evaluation` has.

    Only what the score is computed from counts. It may change when a run is resumed.
    """
    evaluation = config.evaluation.to_dict()
    ways = [name.rpartition("/") for name in evaluation["best"]]
    scored = {name for name, _, _ in ways}
    used = {
        "best": evaluation["best"],
        "seed": evaluation["seed"],
        "sets": {name: evaluation["sets"].get(name) for name, _, _ in ways},
        # A set's noise is by its place.
        "places": [place for place, name in enumerate(config.evaluation.sets) if name in scored],
        "scorers": {name: evaluation["scorers"].get(name) for _, _, name in ways},
    }
    return settings_digest(used)


def warn_of_other_scores(checkpoints: Checkpoints) -> None:
    """Warns of checkpoints whose scores are not by the evaluation of now."""
    if steps := checkpoints.scored_otherwise():
        logging.warning(
            "Checkpoints %s have scores by another config.evaluation than that of now, with which "
            "new ones are not compared: @best is the best by the one of now, and the best by the "
            "other are kept too.",
            steps,
        )


def restore_state(checkpoints: Checkpoints, state: TrainState) -> tuple[int, TrainState] | None:
    """Restores the newest whole checkpoint as `Checkpoints.restore` does, for a program's user.

    Raises:
      UserError: there are checkpoints, but none can be restored.
    """
    try:
        restored = checkpoints.restore(state.saved())
    except RuntimeError as error:
        raise UserError(str(error)) from None
    return restored and (restored[0], TrainState.of_saved(restored[1]))


def read_config(workdir: str) -> Config:
    """Reads the config that a run was last started with.

    Raises:
      FileNotFoundError, UserError: there is no config, or it is damaged.
    """
    path = epath.Path(workdir) / "config.json"
    values = read_json(path)
    if missing := [name for name in ("model", "tasks", "evaluation") if name not in values]:
        raise UserError(f"{path} lacks {', '.join(missing)}, which each run writes: copy it again.")
    config = of_earlier(values)
    try:
        fields.check(config, of_now=False)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config


def drawn_by(path: str) -> str:
    """Returns what `config.model` names of a model, which is a run's or one by itself.

    Args:
      path: as in `load_trained`.
    """
    return read_config(path).model if is_run(path) else path


def opening_config(path: str) -> Config:
    """Returns the config by which `load_trained` opens and samples a model on all devices.

    Each device gets a part of the model, since there may be no room for a whole copy on each. The
    devices may be of another kind than those of the run, whose kernels they may lack.

    Args:
      path: the workdir of a run, whose own config is returned but for that; or a diffusers folder
        or a hub id, for which it is the usual one of the model's family.
    """
    if is_run(path):
        config = read_config(path)
    else:
        config = get_config()
        config.model = path
        config.remat = "none"
        config.sampler.guidance_scale = STABLE_DIFFUSION.guidance_scale
        with contextlib.suppress(FileNotFoundError, UserError):  # `load_trained` says what it is.
            config.sampler.guidance_scale = family_at(path).guidance_scale
    config.mesh.fsdp = jax.device_count()
    config.attention = config.convolution = "auto"
    return config


def differing_fields(
    earlier: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "config"
) -> list[str]:
    """Returns the names of the fields in which two configs differ, with both values."""
    differences = []
    for name in sorted({*earlier, *now}):
        old, new = (values.get(name, "absent") for values in (earlier, now))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            differences += differing_fields(old, new, f"{prefix}.{name}")
        elif old != new:
            differences.append(f"{prefix}.{name} (was {_short(old)}, now {_short(new)})")
    return differences


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def of_its_methods(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config's fields without those of the methods that no task learns by."""
    kept = ("name", *tasks_by_method(values))
    return dict(values) | {"algorithm": {name: values["algorithm"].get(name) for name in kept}}


def check_same_experiment(workdir: str, config: Config) -> None:
    """Refuses to resume a run as another experiment.

    Args:
      workdir: the workdir of the run, with checkpoints in it.
      config: the config of now. The fields in `FREE_FIELDS` may differ.

    Raises:
      UserError: another field differs, and the message names each that does; or there is no
        config.json to compare with.
    """
    if not is_run(workdir):
        raise UserError(
            f"{workdir} has checkpoints, but no config.json that says of which experiment: put it "
            "back, or choose another --workdir."
        )
    # Where nothing is scored on the host, nothing can be overlapped.
    free = FREE_FIELDS if scores_on_host(config) else (*FREE_FIELDS, "overlap_scoring")
    as_written = lambda values: json.loads(json.dumps(values.to_dict(), default=str))
    earlier, now = (
        {name: value for name, value in of_its_methods(values).items() if name not in free}
        for values in map(as_written, (read_config(workdir), config))
    )
    if differences := differing_fields(earlier, now):
        raise UserError(
            f"{workdir} holds a run of another experiment: {'; '.join(differences)}. Set back what "
            "differs to resume it, or choose another --workdir."
        )


def load_denoiser(workdir: str, policy: Policy, step: str = "last") -> Parameters:
    """Loads the denoiser that a run draws its pictures with.

    Its parameters are those of `load_params`, with LoRA's factors merged.
    """
    lora = make_lora(read_config(workdir))
    merge = make_merge(policy.mesh, policy.denoiser, lora)
    return merge(load_params(workdir, policy, step))


def load_params(workdir: str, policy: Policy, step: str = "last") -> Parameters:
    """Loads the parameters that a run has trained: all of the denoiser's, or LoRA's factors.

    Where the run kept an average of them, the average is loaded.

    Args:
      workdir: the workdir of the run.
      policy: the model that the run started from, on whose mesh the parameters are placed.
      step: "last" (the newest whole checkpoint), "best" (by config.evaluation.best), or a number.

    Raises:
      UserError, FileNotFoundError: there is no such checkpoint, or it cannot be restored.
    """
    config = read_config(workdir)
    shapes = jax.eval_shape(functools.partial(initial_state, config), policy.denoiser)
    wanted = abstract_arrays(shapes.params, parameter_sharding(policy.mesh, shapes.params))
    # Of the train state only the parameters that are asked for are read.
    state: TrainState = jax.tree.map(lambda leaf: ocp.PLACEHOLDER, shapes)
    chosen = "params" if state.ema_params is None else "ema_params"
    state = dataclasses.replace(state, **{chosen: wanted})
    checkpoints = open_checkpoints(workdir, config)
    try:
        if step == "last":
            restored = restore_state(checkpoints, state)
            if restored is None:
                raise UserError(_no_checkpoint(workdir, config))
            return getattr(restored[1], chosen)
        number = checkpoints.best_step() if step == "best" else _step_number(step)
        return getattr(_restore_step(checkpoints, number, state), chosen)
    finally:
        checkpoints.close()


def _no_checkpoint(workdir: str, config: Config) -> str:
    return (
        f"{workdir} has no checkpoint yet: wait for the first, every {config.checkpoint.every} "
        f"iterations, or name the model {config.model}."
    )


def parse_model(text: str, name: str) -> tuple[str, str]:
    """Parses how a user names a model, wherever a run's checkpoint may be one.

    Args:
      text: PATH, or a run's PATH@12, PATH@best or PATH@last; see `data.files.split_step`.
      name: the flag that has the text, for messages.

    Returns:
      The path in full, as `hub.expand` has it, and the step, which is empty where none is given:
      the arguments of `load_trained` and `check_trained`.

    Raises:
      UserError: nothing can be at the path, or the step is not one.
    """
    path, step = split_step(text)
    if path != text and step not in ("best", "last") and not step.isdecimal():
        raise UserError(
            f"{name}={text}: the step {step!r} is not a number, 'best' or 'last', and there is no "
            "folder of that whole name."
        )
    return hub.expand(path, name), step


def _step_number(step: str) -> int:
    """Returns the number of a step, or raises a UserError."""
    if not step.isdecimal():
        raise UserError(f"The step {step!r} is not a number, 'best' or 'last'.")
    return int(step)


def _restore_step(checkpoints: Checkpoints, step: int, state: TrainState) -> TrainState:
    """Restores one step, and names the checkpoint in the error if it is damaged."""
    try:
        return TrainState.of_saved(checkpoints.restore_step(step, state.saved()))
    except FileNotFoundError:
        if step in checkpoints.steps():
            raise UserError(_damaged(checkpoints, step, "a file is missing")) from None
        raise
    except Exception as error:  # Orbax, TensorStore and JSON each raise their own kinds.
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise UserError(_damaged(checkpoints, step, reason)) from error


def _damaged(checkpoints: Checkpoints, step: int, reason: str) -> str:
    return (
        f"Checkpoint {step} in {checkpoints.directory} cannot be restored ({reason}): choose "
        f"another of {list(checkpoints.steps())}."
    )


def _locate_folder(path: str, step: str) -> epath.Path:
    """Returns the diffusers folder of a path or a hub id, which has no step."""
    if step:
        raise UserError(
            f"{path} is not the workdir of a run (it has no config.json), so it has no step "
            f"{step!r}: mend the path, or leave out the step of a model."
        )
    neither = f"{path} is neither the workdir of a run (it has no config.json) nor a diffusers"
    try:
        folder = hub.locate(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{neither} folder: {error}") from None
    if not any((folder / name).exists() for name in DENOISERS):
        names = " or ".join(f"{name}/" for name in DENOISERS)
        raise FileNotFoundError(f"{neither} folder (it has no {names}): mend the path.")
    return folder


def check_trained(path: str, step: str) -> None:
    """Refuses what `load_trained` would not find. Whether it is whole shows only when it is loaded.

    Args:
      path, step: as in `load_trained`.

    Raises:
      UserError, FileNotFoundError: there is no such model or step.
    """
    if not is_run(path):
        _locate_folder(path, step)
        return
    config = read_config(path)
    with contextlib.closing(open_checkpoints(path, config)) as checkpoints:
        if step == "best":
            checkpoints.best_step()
        elif step not in ("", "last"):
            checkpoints.check_step(_step_number(step))
        elif not checkpoints.steps():
            raise UserError(_no_checkpoint(path, config))


def load_trained(path: str, config: Config, step: str = "", base: Policy | None = None) -> Policy:
    """Loads a model with the networks that a run, or anybody, has trained.

    Args:
      path: the workdir of a run, a diffusers folder, asset:... , or a Hugging Face hub id.
      config: says how to sample the model, and on which devices. For a run, the run's own `model`
        takes the place of this config's.
      step: the step of a run, as in `load_params`; "last" if it is empty.
      base: the model `config.model`, if it is open already.

    Raises:
      UserError, FileNotFoundError: there is no such model or step.
    """
    if not is_run(path):
        return load_policy(config, str(_locate_folder(path, step)))
    check_trained(path, step)  # Before a model of gigabytes is fetched and loaded.
    own = read_config(path)
    # The factors that this config starts from are none of a run's: its LoRA is of the plain model.
    has_others = bool(config.lora.start and not config.lora.rank and own.lora.rank)
    if base is not None and own.model == config.model and not has_others:
        start = base
    else:
        plain = config.copy_and_resolve_references()
        plain.lora.start = ""
        start = load_policy(plain, own.model)
    denoiser = load_denoiser(path, start, step or "last")
    return dataclasses.replace(start, params=start.with_denoiser(denoiser))
