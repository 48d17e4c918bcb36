"""Chooses how an experiment is divided over the chips that are there, by arithmetic.

Where `config.mesh.fsdp` or a field of `config.microbatch` is 0, or `config.mesh.gather` or
`config.remat` is "auto", it is chosen from the number of chips and their memory, as
`experiments/memory.py` estimates what is needed. What a user sets is obeyed. None of these fields
changes what is computed, beyond rounding. On CPUs samples are drawn and trained on in small pieces,
and all else is done at once, as long as the machine has room for that.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator

from absl import logging
from jax.sharding import AbstractMesh

from diffusionrl_jax.algorithms import needs_of
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.distributed.devices import Devices, devices_here
from diffusionrl_jax.distributed.mesh import BATCH_AXES
from diffusionrl_jax.distributed.microbatch import largest_divisor
from diffusionrl_jax.experiments import checks, fields, memory, shared_prefix
from diffusionrl_jax.experiments.config import get_config
from diffusionrl_jax.experiments.memory import Division, Sizes
from diffusionrl_jax.mistakes import UserError

GIB = 2**30
MICROBATCHES = ("sample", "decode", "score", "train")
# A plan uses this part of the memory at most, if it can: the estimate is a few percent off.
USED = 0.94
# Above this part there is a warning: the estimate has been 3% too low.
SURE = 0.97
# More chips than these share parameters only where they have to.
FSDP = 16
# A state that is not split may take this part of the memory.
WHOLE_STATE = 1 / 16
# With more samples at a time a denoiser of Stable Diffusion's size gains nothing, and with fewer
# it reads its parameters more often than it should. Smaller networks take more.
MOST, FEWEST = 8, 4
USUAL_VALUES = 64 * 64 * 320
# The images of one microbatch may take this part of the memory while they are scored, or decoded.
SCORED, DECODED = 1 / 8, 1 / 6
ON_A_CPU = 20  # A CPU samples and trains faster in small pieces.
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


def usual_split(count: int) -> int:
    """Returns over how many of `count` chips parameters are split if memory asks for no more."""
    return largest_divisor(count, min(FSDP, count))


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _splits(config, sizes: Sizes, devices: Devices) -> list[int]:
    """Returns values of fsdp, the best first."""
    if config.mesh.fsdp:
        return [config.mesh.fsdp]
    divisors = _divisors(devices.count)
    state = memory.FLOAT * (sizes.copies * sizes.trained + sizes.model.denoiser)
    usual = usual_split(devices.count)
    more = [number for number in divisors if number > usual]
    small = devices.memory is None or state <= WHOLE_STATE * devices.memory
    if devices.platform == "cpu" or small:
        return [1, *(number for number in (usual, *more) if number > 1)]
    return [usual, *more]


def _pairs(config, sizes: Sizes, share: int) -> Iterator[list[tuple[str, int]]]:
    """Yields lists of pairs of remat and how many samples to train on at a time, the best first.

    The first list is of as many samples as a chip should have, the second of fewer.
    """
    set_by_user = config.microbatch.train
    if not set_by_user and config.dtype != "float32":
        set_by_user = config.microbatch.sample  # With two numbers they would round differently.
    values = max(1, sizes.model.network.read)
    most = max(MOST, MOST * USUAL_VALUES // values)
    possible = trained_at_a_time(config, share)
    counts = [size for size in possible if size <= most][::-1] or possible[:1]
    few = [size for size in counts if size < min(FEWEST, counts[0])]
    many = [size for size in counts if size not in few]
    if set_by_user:
        few, many = [], [set_by_user]
    policies = ["none", "blocks", "full"] if config.remat == "auto" else [config.remat]
    for sizes_tried in (many, few):
        # To recompute nothing gains more than to take more samples at a time.
        yield list(itertools.product(policies, sizes_tried))


def _in_groups(config, share: int) -> list[int]:
    """Returns the numbers of samples that divide a chip's share and are whole groups.

    It is the whole share if there are none.
    """
    groups = math.lcm(*(task.group_size for task in config.tasks.values()))
    return [size for size in _divisors(share) if size % groups == 0] or [share]


def trained_at_a_time(config: Config, share: int) -> list[int]:
    """Returns how many samples of a chip's share may be trained on at a time, the fewest first."""
    needs = needs_of(config)
    if needs.pairs:
        return [size for size in _divisors(share) if size % 2 == 0] or [share]
    if needs.branches:
        share = shared_prefix.samples_of_a_step(config, share)
    return _in_groups(config, share) if needs.groups else _divisors(share)


def _scored(config, sizes: Sizes, devices: Devices, share: int) -> int:
    """Returns how many images to score at a time.

    They are whole groups that divide a chip's share, or all of it.
    """
    if chosen := config.microbatch.score:
        return chosen
    assert devices.memory is not None  # `choose` has refused to choose without it.
    possible = _in_groups(config, share)
    of_image = 2 * sizes.image + max(sizes.rewarded, default=0)
    room = SCORED * devices.memory / of_image
    return max((size for size in possible if size <= room), default=min(possible))


def _decoded(config, sizes: Sizes, devices: Devices, share: int, scored: int) -> int:
    """Returns how many images to decode at a time."""
    if chosen := config.microbatch.decode:
        return chosen
    assert devices.memory is not None  # See `_scored`.
    among = scored if scored < share else sizes.tasks * share
    room = int(DECODED * devices.memory / sizes.decoded)
    return largest_divisor(among, max(1, min(room, among)))


def _on_a_cpu(config, sizes: Sizes, devices: Devices, share: int) -> Division:
    """Returns the division on CPUs: small pieces in sampling and training, and all else at once."""
    total, possible = sizes.tasks * share, trained_at_a_time(config, share)
    small = [size for size in possible if size <= ON_A_CPU]
    if config.dtype == "float32":
        sample = largest_divisor(total, ON_A_CPU) if total > ON_A_CPU else ON_A_CPU
        train = max(share, ON_A_CPU)
        # It gains where gradients of convolutions are computed; XLA's own are slow within a loop.
        gains = config.convolution != "xla" and not sizes.stacked
        if gains and small and small[-1] >= ON_A_CPU / 2:
            train = small[-1]
    else:
        sample = train = small[-1] if small else possible[0]
    chosen = config.microbatch
    if config.dtype != "float32":
        sample, train = chosen.train or sample, chosen.sample or train
    return Division(
        chips=devices.count,
        share=share,
        fsdp=config.mesh.fsdp or 1,
        sample=chosen.sample or sample,
        decode=chosen.decode or max(total, ON_A_CPU),
        score=config.microbatch.score or max(share, ON_A_CPU),
        train=chosen.train or train,
        remat=checks.remat(config),
    )


def _divisions(config, sizes: Sizes, devices: Devices) -> Iterator[Division]:
    """Yields the choices that what is set allows, the best first."""
    # Blocks are gathered for every microbatch, and more than once, so only where microbatches would
    # be too small otherwise.
    gathers = ("whole", "blocks") if config.mesh.gather == "auto" else (config.mesh.gather,)
    share = max(1, config.batch_size // devices.count)
    if devices.platform == "cpu":
        for gather in gathers:
            yield dataclasses.replace(_on_a_cpu(config, sizes, devices, share), gather=gather)
    scored = _scored(config, sizes, devices, share)
    decoded = _decoded(config, sizes, devices, share, scored)
    splits = _splits(config, sizes, devices)
    for pairs in _pairs(config, sizes, share):
        for gather, (remat, size), fsdp in itertools.product(gathers, pairs, splits):
            yield Division(
                chips=devices.count,
                share=share,
                fsdp=fsdp,
                # It is the same number as in training, also where a task's samples are one piece.
                sample=config.microbatch.sample or min(size, share),
                decode=decoded,
                score=scored,
                train=size,
                remat=remat,
                gather=gather,
            )


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
      UserError, FileNotFoundError: as `fields.check`, `checks.check_experiment` and `memory.sizes`.
    """
    fields.check(config)
    if devices.memory is None and _is_automatic(config):
        raise UserError(
            f"The memory of {devices.kind!r} is not known, and so nothing can be chosen by it: set "
            "config.mesh.fsdp, config.microbatch.sample, decode, score and train, and config.remat."
        )
    if trains:
        mesh = AbstractMesh((devices.count, 1), BATCH_AXES)
        checks.check_experiment(config, mesh)
    sizes = memory.sizes(config, kernel=_runs_kernel(config, devices))
    room = math.inf if devices.memory is None else USED * devices.memory
    plans = []
    for division in _divisions(config, sizes, devices):
        plan = _plan(config, sizes, devices, division, trains)
        if plan.memory <= room:
            return plan
        plans.append(plan)
    return min(plans, key=lambda plan: plan.memory)


def _is_automatic(config: Config) -> bool:
    """Returns whether anything is left to the plan."""
    sizes = [config.microbatch.get(name, 0) for name in MICROBATCHES]
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
    if not plan.fits and _is_automatic(config) and devices.platform != "cpu":
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
            "The plan is tight, by a model that has been 3%% too low: %s in %s. Should a chip run "
            "out of memory, take more chips, or a smaller --config.batch_size.",
            *(plan, plan.phase),
        )
    return _filled(config, plan), plan


def _filled(config: Config, plan: Plan) -> Config:
    """Returns a config with what the plan has chosen."""
    filled, division = config.copy_and_resolve_references(), plan.division
    with filled.unlocked():
        filled.mesh.fsdp, filled.remat = division.fsdp, division.remat
        filled.mesh.gather = division.gather
        for name in MICROBATCHES:
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
        if (fitting := choose(changed, devices)).fits:
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
        f"--config.microbatch.{name}={filled.microbatch[name]}" for name in MICROBATCHES
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
