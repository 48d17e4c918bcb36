"""Chooses how an experiment is divided over the chips that are there, by arithmetic.

Where `config.mesh.fsdp` or a field of `config.microbatch` is 0, or `config.mesh.gather` or
`config.remat` is "auto", it is chosen from the number of chips and their memory, as
`experiments/memory.py` estimates what is needed. What a user sets is obeyed. None of these fields
changes what is computed, beyond rounding. On CPUs samples are drawn and trained on in small pieces,
and all else is done at once, as long as the machine has room for that.
"""

import dataclasses
import math
from collections.abc import Iterator

import ml_collections
from absl import logging
from jax.sharding import AbstractMesh

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.distributed.devices import Devices, devices_here
from diffusionrl_jax.distributed.mesh import BATCH_AXES, check_split
from diffusionrl_jax.experiments import checks, fields, memory
from diffusionrl_jax.experiments.config import get_config
from diffusionrl_jax.experiments.divisions import divisions, microbatches
from diffusionrl_jax.experiments.memory import Division, Sizes
from diffusionrl_jax.mistakes import UserError

GIB = 2**30
# A plan uses this part of the memory at most, if it can: the estimate is a few percent off.
USED = 0.94
# Above this part there is a warning: the estimate has been 5% too low.
SURE = 0.95
# Factors learn by a rate far above that of all parameters.
LORA_RANK, LORA_LEARNING_RATE = 16, 1e-4


@dataclasses.dataclass(frozen=True)
class Plan:
    """A choice of how an experiment is divided, and what it takes.

    Attributes:
      devices: the devices that it was made for.
      division: the choice.
      split: whether an iteration runs as one program for each phase. It does on CPUs, with rewards
        on the host, where the config asks for it, and where a single program would not fit.
      memory: an estimate of the bytes that each chip needs at the fullest.
      phase: the phase in which it needs them.
    """

    devices: Devices
    division: Division
    split: bool
    memory: float
    phase: str

    @property
    def fits(self) -> bool:
        """Whether there is room, by the estimate."""
        return self.devices.memory is None or self.memory <= self.devices.memory

    @property
    def is_tight(self) -> bool:
        """Whether there may be no room, since the estimate is not exact."""
        return self.devices.memory is not None and self.memory > SURE * self.devices.memory

    def __str__(self) -> str:
        at_once, share = self.division.train, self.division.share
        batches = "all samples at once" if at_once >= share else f"microbatches of {at_once}"
        remat = "" if self.division.remat == "none" else f", remat {self.division.remat}"
        gather = ", gathered by blocks" if self.division.gather == "blocks" else ""
        text = f"fsdp {self.division.fsdp}, {batches}{remat}{gather}: {self.memory / GIB:.1f}"
        if self.devices.memory is not None:
            text += f" of {self.devices.memory / GIB:.4g}"
        return f"{text} GiB a chip"

    def to_json(self) -> dict:
        """Returns the plan as config.json holds it."""
        return dataclasses.asdict(self)


def _plan(config, sizes: Sizes, devices: Devices, division: Division, trains: bool) -> Plan:
    """Returns the plan of a division, as one program where that is possible."""
    needed = memory.needed(sizes, division, trains)
    whole = needed.pop("whole step", 0)
    phase = max(needed, key=lambda name: needed[name])
    split = sizes.on_host or config.execution == "split"
    if config.execution == "auto":
        fits = devices.memory is None or whole <= USED * devices.memory
        split |= devices.platform == "cpu" or not fits
    if not split and whole > needed[phase]:
        return Plan(devices, division, split, whole, "whole step")
    return Plan(devices, division, split, needed[phase], phase)


def _runs_kernel(config: Config, devices: Devices) -> bool:
    """Returns whether `config.attention` "auto" means a kernel; cuDNN's is for half precision."""
    return devices.platform == "tpu" or devices.platform == "gpu" and config.dtype != "float32"


def choose(config: Config, devices: Devices, trains: bool = True) -> Plan:
    """Returns the best plan that fits, or the one that needs least if none does.

    Args:
      config: see `experiments/config.py`. What is set in it is kept.
      devices: the devices that it is to run on.
      trains: whether it is to be trained, or only sampled and scored.

    Raises:
      UserError: something is to be chosen, and the chips' memory is not known.
      UserError, FileNotFoundError: as `fields.check` and `memory.sizes`; and where it is to be
        trained, as `checks.check` and `checks.check_evaluation`.
    """
    fields.check(config)
    if devices.memory is None and _is_automatic(config, trains):
        raise UserError(
            f"The memory of {devices.kind!r} is not known, and so nothing can be chosen by it: set "
            f"config.mesh.fsdp, config.microbatch.{', '.join(microbatches(config, trains))}, and "
            "config.remat."
        )
    mesh = AbstractMesh((devices.count, 1), BATCH_AXES)
    if config.mesh.fsdp:
        check_split(config.mesh.fsdp, devices.count)
    if trains:
        checks.check_experiment(config, mesh)
        checks.check_evaluation(config, mesh)
        checks.check_microbatches(config, devices.count)
    plan = _best(config, devices, trains)
    if trains:  # What a user sets may not fit what is chosen.
        checks.check(_filled(config, plan), mesh)
    return plan


def _best(config: Config, devices: Devices, trains: bool) -> Plan:
    """Returns the best plan, as `choose` does, of a config that has been looked at."""
    sizes = memory.sizes(config, kernel=_runs_kernel(config, devices))
    room = math.inf if devices.memory is None else USED * devices.memory
    plans = []
    for division in divisions(config, sizes, devices):
        plan = _plan(config, sizes, devices, division, trains)
        if plan.memory <= room:
            return plan
        plans.append(plan)
    return min(plans, key=lambda plan: plan.memory)


def _is_automatic(config: Config, trains: bool = True) -> bool:
    """Returns whether anything is left to the plan."""
    sizes = [config.microbatch[name] for name in microbatches(config, trains)]
    return not (config.mesh.fsdp and all(sizes) and config.remat != "auto")


def refuse_too_large(config: Config, devices: Devices | None = None, trains: bool = True) -> Plan:
    """Returns a config's plan, which fits, or about which nothing is to be done.

    What a user sets is obeyed, and a CPU can swap.

    Args:
      config: see `experiments/config.py`.
      devices: the devices that it is to run on; None means those that are here.
      trains: as in `choose`.

    Raises:
      UserError: the plan does not fit, where anything is left open and the devices are no CPUs; it
        says what would.
      UserError, FileNotFoundError: as `choose`.
    """
    devices = devices or devices_here()
    plan = choose(config, devices, trains)
    if not plan.fits and _is_automatic(config, trains) and devices.platform != "cpu":
        raise UserError(_too_large(config, devices, plan, trains))
    return plan


def resolve(
    config: Config,
    devices: Devices | None = None,
    *,
    trains: bool = True,
    refuse: bool = True,
) -> tuple[Config, Plan]:
    """Puts a plan in place of what a config leaves open.

    Args:
      config: see `experiments/config.py`. It is not changed.
      devices: the devices that it is to run on; None means those that are here.
      trains: as in `choose`.
      refuse: whether what `refuse_too_large` refuses is an error. Else there is a warning, and the
        plan is the one that needs least.

    Returns:
      A config with nothing left open, and the plan.

    Raises:
      UserError: the plan does not fit; it says what would.
      UserError, FileNotFoundError: as `choose`.
    """
    devices = devices or devices_here()
    plan = (refuse_too_large if refuse else choose)(config, devices, trains)
    if not plan.fits:
        logging.warning("%s", _too_large(config, devices, plan, trains))
    elif plan.is_tight and trains and devices.platform != "cpu":
        logging.warning(
            "The plan is tight, by a model that has been 5%% too low: %s in %s. Should a chip run "
            "out of memory, take more chips, or a smaller --config.batch_size.",
            *(plan, plan.phase),
        )
    return _filled(config, plan), plan


def resolve_to_sample(
    config: Config, most: int, devices: Devices | None = None
) -> tuple[Config, int]:
    """Chooses how the networks of a model are gathered that is only sampled, with no reward.

    Where there may be no room, there is a warning.

    Args:
      config: see `experiments/config.py`, of which tasks and evaluation do not matter. It is not
        changed.
      most: how many pictures a device draws at a time, at most.
      devices: the devices that it is to run on; None means those that are here.

    Returns:
      The config with `mesh.gather`, and how many pictures a device draws at a time.

    Raises:
      UserError, FileNotFoundError: as `choose`, but for devices whose memory is not known, on which
        nothing is chosen.
    """
    devices = devices or devices_here()
    if devices.memory is None:
        return config, most
    alone = config.copy_and_resolve_references()
    with alone.unlocked():
        alone.tasks = alone.evaluation.sets = ml_collections.ConfigDict()
        alone.microbatch.update(dict.fromkeys(alone.microbatch, 0))
        alone.batch_size = most * devices.count
    plan = choose(alone, devices, trains=False)
    if not plan.fits and devices.platform != "cpu":  # A CPU can swap.
        logging.warning(
            "%s may not fit %s: drawing takes %.1f of %.4g GiB a chip, by a model of the memory. "
            "Take more chips, should they run out of it.",
            *(config.model, devices, plan.memory / GIB, devices.memory / GIB),
        )
    filled = config.copy_and_resolve_references()
    filled.mesh.gather = plan.division.gather
    return filled, min(most, plan.division.sample)


def _filled(config: Config, plan: Plan) -> Config:
    """Returns a config with what the plan has chosen."""
    filled, division = config.copy_and_resolve_references(), plan.division
    with filled.unlocked():
        filled.mesh.fsdp, filled.remat = division.fsdp, division.remat
        filled.mesh.gather = division.gather
        for name in microbatches(config):
            filled.microbatch[name] = getattr(division, name)
        if plan.split and plan.devices.platform != "cpu":
            filled.execution = "split"
    return filled


def propose(config: Config, devices: Devices) -> tuple[dict[str, float], Plan]:
    """Returns the least change with which a config fits, and the plan of the changed config.

    Args:
      config: see `experiments/config.py`.
      devices: the devices that it is to run on.

    Returns:
      The fields to change, by dotted names, with the plan. There are none if the config fits as it
      is, or if no known change makes it fit.
    """
    plan = choose(config, devices)
    if plan.fits:
        return {}, plan
    for changes in _mends(config, devices):
        changed = config.copy_and_resolve_references()
        with changed.unlocked():
            changed.update_from_flattened_dict(changes)
        try:
            fitting = choose(changed, devices)
        except UserError:  # A smaller batch need not divide into what its method asks for.
            continue
        if fitting.fits:
            return changes, fitting
    return {}, plan


def _too_large(config: Config, devices: Devices, plan: Plan, trains: bool) -> str:
    """Returns a message that says what does not fit, and what would."""
    text = (
        f"{config.model} with the tasks {', '.join(config.tasks)} does not fit {devices}, by a "
        f"model of the memory: it takes {plan} in {plan.phase}, at least. Take more chips"
    )
    changes, fitting = propose(config, devices) if trains else ({}, plan)
    if changes:
        mend = " ".join(f"--config.{name}={value}" for name, value in changes.items())
        text += f", or {mend} ({fitting.memory / GIB:.1f} GiB a chip)"
    filled = _filled(config, plan)
    sizes = " ".join(
        f"--config.microbatch.{name}={filled.microbatch[name]}" for name in microbatches(config)
    )
    return (
        f"{text}. To try it all the same, set what the plan would choose: "
        f"--config.mesh.fsdp={filled.mesh.fsdp} --config.mesh.gather={filled.mesh.gather} {sizes} "
        f"--config.remat={filled.remat}"
    )


def _mends(config: Config, devices: Devices) -> Iterator[dict[str, float]]:
    """Yields changes to a config that make it smaller, the least first.

    The first is LoRA, with a learning rate for it unless one has been set, then smaller batches
    follow.
    """
    lora: dict[str, float] = {}
    if not (config.get("lora") or {}).get("rank", 0):
        lora["lora.rank"] = LORA_RANK
        if config.optimizer.learning_rate == get_config().optimizer.learning_rate:
            lora["optimizer.learning_rate"] = LORA_LEARNING_RATE
        yield lora
    unit = math.lcm(devices.count, *(task.group_size for task in config.tasks.values()))
    size = config.batch_size // 2 // unit * unit
    while size:
        yield lora | {"batch_size": size}
        size = size // 2 // unit * unit
