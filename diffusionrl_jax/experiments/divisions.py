"""How an experiment may be divided over chips, and over time, the best ways first.

`experiments/planning.py` takes the first that fits.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator

from diffusionrl_jax.algorithms import needs_of
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.distributed.devices import Devices
from diffusionrl_jax.distributed.microbatch import largest_divisor
from diffusionrl_jax.experiments import checks, memory, shared_prefix
from diffusionrl_jax.experiments.memory import Division, Sizes

# More chips than these share parameters only where they have to.
FSDP = 16
# Into more parts few parameters can be split: Stable Diffusion's are 320, 640 and 1,280 wide.
MOST_PARTS = 128
# A state that is not split may take this part of the memory.
WHOLE_STATE = 1 / 16
# With more samples at a time a denoiser of Stable Diffusion's size gains nothing, and with fewer
# it reads its parameters more often than it should. Smaller networks take more.
MOST, FEWEST = 8, 4
USUAL_VALUES = 64 * 64 * 320
# The images of one microbatch may take this part of the memory while they are scored, or decoded.
SCORED, DECODED = 1 / 8, 1 / 6
MOST_DIFFERENTIATED = 8  # A VAE's decoder gains nothing by more images at a time.
ON_A_CPU = 20  # A CPU samples and trains faster in small pieces.


def microbatches(config: Config, trains: bool = True) -> list[str]:
    """Returns the names of the fields of `config.microbatch` that the config's methods use.

    Args:
      config: see `experiments/config.py`.
      trains: whether it is to be trained, or only sampled and scored.
    """
    names = ["sample", "decode", "score", "train"]
    return names + ["differentiate"] * (trains and needs_of(config).reward_gradient)


def usual_split(count: int, slices: int = 1) -> int:
    """Returns over how many of `count` chips parameters are split if memory asks for no more.

    It is a power of two, which divides what parameters are as wide as. Of 12 chips all would be too
    many: hardly any parameter can be split into so many parts. The chips that share a copy are of
    one slice, since between slices the network is slower.
    """
    return math.gcd(count, count // slices, FSDP)


def divisors(number: int) -> list[int]:
    """Returns the numbers that divide a number, from 1 on."""
    return [size for size in range(1, number + 1) if number % size == 0]


def _splits(config, sizes: Sizes, devices: Devices) -> list[int]:
    """Returns values of fsdp, the best first."""
    if config.mesh.fsdp:
        return [config.mesh.fsdp]
    state = memory.FLOAT * (sizes.copies * sizes.trained + sizes.model.denoiser)
    usual = usual_split(devices.count, devices.slices)
    largest = math.gcd(devices.count, MOST_PARTS)
    more = [size for size in divisors(largest) if size > usual]
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


def in_groups(config, share: int, tasks: Iterable[str] | None = None) -> list[int]:
    """Returns the numbers of samples that divide a chip's share and are whole groups.

    It is the whole share if there are none.

    Args:
      config: see `experiments/config.py`.
      share: how many samples of a task each chip has.
      tasks: the tasks whose groups are meant; None means all.
    """
    tasks = config.tasks if tasks is None else tasks
    groups = math.lcm(*(config.tasks[name].group_size for name in tasks))
    return [size for size in divisors(share) if size % groups == 0] or [share]


def trained_at_a_time(config: Config, share: int) -> list[int]:
    """Returns how many samples of a chip's share may be trained on at a time, the fewest first."""
    needs = needs_of(config)
    if needs.pairs:
        return [size for size in divisors(share) if size % 2 == 0] or [share]
    if needs.branches:
        share = shared_prefix.samples_of_a_step(config, share)
    return in_groups(config, share) if needs.groups else divisors(share)


def differentiated_at_a_time(config: Config, share: int) -> list[int]:
    """Returns of how many samples of a chip's share rewards may be differentiated at a time.

    The fewest come first.
    """
    return in_groups(config, share, checks.differentiated_in_groups(config))


def _differentiated(config, share: int) -> list[int]:
    """Returns of how many images to differentiate rewards at a time, the best number first."""
    if not needs_of(config).reward_gradient:
        return [0]
    if chosen := config.microbatch.differentiate:
        return [chosen]
    possible = differentiated_at_a_time(config, share)
    return [size for size in possible if size <= MOST_DIFFERENTIATED][::-1] or possible[:1]


def _scored(config, sizes: Sizes, devices: Devices, share: int) -> int:
    """Returns how many images to score at a time.

    They are whole groups that divide a chip's share, or all of it.
    """
    if chosen := config.microbatch.score:
        return chosen
    assert devices.memory is not None  # `planning.choose` has refused to choose without it.
    possible = in_groups(config, share)
    of_image = 2 * sizes.image + max((*sizes.rewarded, *sizes.judged), default=0)
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
    chosen, scored = config.microbatch, config.microbatch.score or max(share, ON_A_CPU)
    if config.dtype != "float32":
        sample, train = chosen.train or sample, chosen.sample or train
    return Division(
        chips=devices.count,
        share=share,
        fsdp=config.mesh.fsdp or 1,
        sample=chosen.sample or sample,
        decode=chosen.decode or max(total, ON_A_CPU),
        score=scored,
        train=chosen.train or train,
        differentiate=chosen.differentiate or scored,
        remat=checks.remat(config),
    )


def divisions(config: Config, sizes: Sizes, devices: Devices) -> Iterator[Division]:
    """Yields the divisions that what is set allows, the best first.

    Args:
      config: see `experiments/config.py`.
      sizes: the experiment's sizes.
      devices: the devices that it is to run on.
    """
    # Blocks are gathered for every microbatch, and more than once, so only where microbatches would
    # be too small otherwise.
    gathers = ("whole", "blocks") if config.mesh.gather == "auto" else (config.mesh.gather,)
    share = max(1, config.batch_size // devices.count)
    if devices.platform == "cpu":
        for gather in gathers:
            yield dataclasses.replace(_on_a_cpu(config, sizes, devices, share), gather=gather)
    scored = _scored(config, sizes, devices, share)
    decoded = _decoded(config, sizes, devices, share, scored)
    splits, differentiated = _splits(config, sizes, devices), _differentiated(config, share)
    for pairs in _pairs(config, sizes, share):
        for gather, (remat, size), fsdp, at_once in itertools.product(
            gathers, pairs, splits, differentiated
        ):
            yield Division(
                chips=devices.count,
                share=share,
                fsdp=fsdp,
                # It is the same number as in training, also where a task's samples are one piece.
                sample=config.microbatch.sample or min(size, share),
                decode=decoded,
                score=scored,
                train=size,
                differentiate=at_once,
                remat=remat,
                gather=gather,
            )
