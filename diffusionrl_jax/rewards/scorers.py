"""From a config's scorers to rewards."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.mistakes.code import named_errors, without_exit
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.rewards import REWARDS, LoadedReward, Reward, folders
from diffusionrl_jax.rewards.http_scorer import check_address
from diffusionrl_jax.rewards.imports import resolve
from diffusionrl_jax.rewards.weighted_sum import WeightedSum

WEIGHTED_SUM = "weighted_sum"
HOST_REWARD = "host_reward"
PROMPTS_PER_CHECK = 4096


def _reward_class(scorer: Config) -> type[LoadedReward]:
    if ":" in scorer.reward:
        kind = resolve(scorer.reward)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            raise UserError(f"reward={scorer.reward!r} is not a dataclass, as rewards are.")
        return cast(type[LoadedReward], kind)
    if scorer.reward not in REWARDS:
        raise UserError(f"reward={scorer.reward!r} is not one of {sorted(REWARDS)}.")
    return REWARDS[scorer.reward]


def load_scorer(scorer: Config, group_size: int) -> tuple[Reward, Parameters]:
    """Opens a reward model from `configs.common.make_scorer`, or several from `make_weighted_sum`.

    Args:
      scorer: its name, folder or hub id, and options.
      group_size: images of each prompt; handed to rewards that look at groups.

    Raises:
      UserError: if the name or an option is unknown; or one of your own cannot be loaded, whatever
        it raises.
      FileNotFoundError, OSError: see `folders.locate`.
    """
    if scorer.reward == WEIGHTED_SUM:
        parts = {
            name: load_scorer(part, group_size) for name, part in scorer.options.scorers.items()
        }
        rewards = {name: reward for name, (reward, _) in parts.items()}
        reward = WeightedSum(rewards, scorer.options.weights.to_dict())
        return reward, {name: params for name, (_, params) in parts.items()}
    kind = _reward_class(scorer)
    options: dict[str, Any] = dict(scorer.options)
    fields = {field.name for field in dataclasses.fields(kind)}
    if unknown := set(options) - fields:
        raise UserError(f"{scorer.reward} has no option {sorted(unknown)}: see {sorted(fields)}.")
    if "group_size" in fields:
        options["group_size"] = group_size
    if ":" not in scorer.reward:
        return kind.load(folders.locate(scorer.reward, scorer.path), **options)
    with named_errors(f"{scorer.reward} cannot be loaded", "mend its load"):
        reward, params = kind.load(scorer.path, **options)
    return reward, params


def prepare(reward: Reward, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """As `Reward.prepare`, of a reward that may be anybody's.

    Raises:
      UserError: it calls sys.exit, which would end the run as if all were well.
    """
    with without_exit(f"{type(reward).__name__}.prepare"):
        return reward.prepare(prompts)


def check_prompts(reward: Reward, prompts: Iterable[str]) -> None:
    """Has a reward, and all parts of a sum, look for prompts that it can't score.

    Args:
      reward: any; asked only if it has a `check`.
      prompts: gone through once at most, without being held.

    Raises:
      UserError: a prompt that the reward refuses.
    """
    checks = _checks(reward)
    prompts = iter(prompts)
    while checks and (chunk := list(itertools.islice(prompts, PROMPTS_PER_CHECK))):
        for check in checks:
            with without_exit(check.__qualname__):
                check(chunk)


def _checks(reward: Reward) -> list[Callable[[Sequence[str]], None]]:
    if isinstance(reward, WeightedSum):
        return [check for part in reward.rewards.values() for check in _checks(part)]
    check = getattr(reward, "check", None)
    return [check] if check else []


def check_scorer(scorer: Config) -> None:
    """Refuses a name that is not known, before anything is loaded.

    Raises:
      UserError: there is no such reward.
    """
    if scorer.reward == WEIGHTED_SUM:
        for part in scorer.options.scorers.values():
            check_scorer(part)
    else:
        _reward_class(scorer)


def is_of_ones_own(scorer: Config) -> bool:
    """Whether it, or a part of it, is a reward that is not shipped, `package.module:Class`."""
    if scorer.reward == WEIGHTED_SUM:
        return any(map(is_of_ones_own, scorer.options.scorers.values()))
    return ":" in scorer.reward


def is_on_host(scorer: Config) -> bool:
    """Whether it, or a part of it, is a `host_reward`.

    Raises:
      UserError: its address has a password, which is refused before anything shows the config.
    """
    if scorer.reward == WEIGHTED_SUM:
        return any(map(is_on_host, scorer.options.scorers.values()))
    if scorer.reward == HOST_REWARD:
        check_address(scorer.path)
    return scorer.reward == HOST_REWARD
