"""Says what is to be done where devices run out of memory, which plans can only estimate."""

import contextlib
from collections.abc import Iterator, Sequence

import jax

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.experiments.divisions import (
    differentiated_at_a_time,
    divisors,
    in_groups,
    microbatches,
    trained_at_a_time,
)
from diffusionrl_jax.experiments.planning import LORA_RANK, Plan
from diffusionrl_jax.mistakes import UserError

EXHAUSTED = "RESOURCE_EXHAUSTED"  # XLA's word for it, in compiling and in running.


@contextlib.contextmanager
def clear_out_of_memory(config: Config, plan: Plan) -> Iterator[None]:
    """Adds the plan and the mend to the error of devices that run out of memory.

    Args:
      config: the config that runs, with nothing left open.
      plan: the plan by which it was filled.

    Raises:
      UserError: there is no memory left.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if EXHAUSTED not in str(error):
            raise
        ways = ["take more chips"]
        if sizes := smaller(config, plan.division.share):
            flags = (
                f"--config.microbatch.{name}={size} (it was {config.microbatch[name]})"
                for name, size in sizes.items()
            )
            ways.insert(0, f"set {', '.join(flags)}")
        if not config.lora.rank:
            ways.append(f"train with --config.lora.rank={LORA_RANK} in another workdir")
        raise UserError(
            f"The devices have run out of memory, of which the plan was {plan}, in {plan.phase}, by"
            f" a model of it: {', or '.join(ways)}. What is saved stays, and the same command goes "
            f"on from there. ({next(iter(str(error).splitlines()))[:200]})"
        ) from error


def smaller(config: Config, share: int) -> dict[str, int]:
    """Returns microbatches of at most half as many samples, where there are such.

    Args:
      config: see `experiments/config.py`, with nothing left open.
      share: how many samples of a task each chip has.

    Returns:
      The fields of `config.microbatch` that become smaller, with which the config passes `checks`.
    """
    total, now = share * len(config.tasks), config.microbatch

    def half(size: int, possible: Sequence[int]) -> int:
        most = min(size, possible[-1]) // 2
        return max((fewer for fewer in possible if fewer <= most), default=possible[0])

    train = half(now.train, trained_at_a_time(config, share))
    score = half(now.score, in_groups(config, share))
    # Only in float32 may the denoiser see another number of samples in sampling than in training.
    sample = half(now.sample, divisors(total)) if config.dtype == "float32" else train
    decode = half(now.decode, divisors(score if score < share else total))
    differentiate = half(now.differentiate, differentiated_at_a_time(config, share))
    sizes = {
        "sample": sample,
        "decode": decode,
        "score": score,
        "train": train,
        "differentiate": differentiate,
    }
    return {name: sizes[name] for name in microbatches(config) if sizes[name] < now[name]}
