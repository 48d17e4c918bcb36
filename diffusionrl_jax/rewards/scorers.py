"""Makes rewards from the scorers that a config describes."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.mistakes.code import named_errors, without_exit
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.rewards import REWARDS, LoadedReward, Reward, folders
from diffusionrl_jax.rewards.http_scorer import check_address
from diffusionrl_jax.rewards.imports import resolve
from diffusionrl_jax.rewards.statistical_parity import SHARED
from diffusionrl_jax.rewards.weighted_sum import WeightedSum

WEIGHTED_SUM = "weighted_sum"
HOST_REWARD = "host_reward"
PROMPTS_PER_CHECK = 4096


def _reward_class(scorer: Config) -> type[LoadedReward]:
    """Returns the class that a scorer names: one in `REWARDS`, or a person's own."""
    if ":" in scorer.reward:
        kind = resolve(scorer.reward)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            raise UserError(f"reward={scorer.reward!r} is not a dataclass, as rewards are.")
        return cast(type[LoadedReward], kind)
    if scorer.reward not in REWARDS:
        raise UserError(f"reward={scorer.reward!r} is not one of {sorted(REWARDS)}.")
    return REWARDS[scorer.reward]


def load_scorer(scorer: Config, group_size: int) -> tuple[Reward, Parameters]:
    """Opens the reward that a scorer describes, or the several rewards of a weighted sum.

    Scorers are made by `make_scorer` and `make_weighted_sum` of `experiments/tasks.py`.

    Args:
      scorer: the reward's name, its folder or hub id, and its options.
      group_size: how many images each prompt has; it is passed to rewards with a field
        `group_size`.

    Returns:
      The reward and its parameters.

    Raises:
      UserError: the name or an option is unknown, or a person's own reward cannot be loaded,
        whatever it raises.
      FileNotFoundError, OSError: see `folders.locate`.
    """
    if scorer.reward == WEIGHTED_SUM:
        parts = {
            name: load_scorer(part, group_size) for name, part in scorer.options.scorers.items()
        }
        rewards = {name: reward for name, (reward, _) in parts.items()}
        return make_sum(scorer, rewards, group_size), {
            name: params for name, (_, params) in parts.items()
        }
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


def make_sum(scorer: Config, rewards: Mapping[str, Reward], group_size: int) -> WeightedSum:
    """Returns the sum that a scorer describes.

    Args:
      scorer: the scorer, from `make_weighted_sum`.
      rewards: name -> reward.
      group_size: how many images each prompt has.

    Raises:
      UserError: as `WeightedSum`.
    """
    options = scorer.options
    by = group_size if options.get("normalised", False) else 0
    return WeightedSum(rewards, options.weights.to_dict(), by)


def prepare(reward: Reward, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """Calls `Reward.prepare` of a reward that may be anybody's.

    Raises:
      UserError: it calls sys.exit, which would end the run as if all were well.
    """
    with without_exit(f"{type(reward).__name__}.prepare"):
        return reward.prepare(prompts)


def check_prompts(reward: Reward, prompts: Iterable[str]) -> None:
    """Has a reward, and all parts of a sum, look for prompts that it cannot score.

    Args:
      reward: any reward; it is asked only if it has a `check`.
      prompts: the prompts, which are gone through once at most and not held.

    Raises:
      UserError: the reward refuses a prompt.
    """
    checks = _checks(reward)
    prompts = iter(prompts)
    while checks and (chunk := list(itertools.islice(prompts, PROMPTS_PER_CHECK))):
        for check in checks:
            with without_exit(check.__qualname__):
                check(chunk)


def _checks(reward: Reward) -> list[Callable[[Sequence[str]], None]]:
    """Returns the `check` of a reward or of each part of a sum, where there is one."""
    if isinstance(reward, WeightedSum):
        return [check for part in reward.rewards.values() for check in _checks(part)]
    check = getattr(reward, "check", None)
    return [check] if check else []


def check_scorer(scorer: Config) -> None:
    """Refuses an unknown name before anything is loaded.

    Raises:
      UserError: there is no such reward.
    """
    if scorer.reward == WEIGHTED_SUM:
        for part in scorer.options.scorers.values():
            check_scorer(part)
    else:
        _reward_class(scorer)


def is_normalised(scorer: Config) -> bool:
    """Returns whether a scorer, or a part of it, is a sum of rewards that are normalised."""
    if scorer.reward != WEIGHTED_SUM:
        return False
    return scorer.options.get("normalised", False) or any(
        map(is_normalised, scorer.options.scorers.values())
    )


def without_gradient(scorer: Config) -> list[str]:
    """Returns the names of a scorer's rewards whose scores have no gradient by the pictures."""
    if scorer.reward == WEIGHTED_SUM:
        # Of scores that always add up to 0, the sum over a group has no gradient.
        if scorer.options.get("normalised", False):
            return ["normalised weighted_sum"]
        return sum(map(without_gradient, scorer.options.scorers.values()), [])
    kind = _reward_class(scorer)
    return [] if getattr(kind, "has_gradient", True) else [scorer.reward]


def sharing(scorer: Config, normalised: bool = True) -> list[str]:
    """Returns the names of a scorer's rewards that give all pictures of a prompt one score.

    Args:
      scorer: the scorer.
      normalised: whether the scorer's scores are normalised by those of their prompt. If not, only
        the parts of normalised sums are looked at.
    """
    if scorer.reward == WEIGHTED_SUM:
        normalised = normalised or scorer.options.get("normalised", False)
        parts = scorer.options.scorers.values()
        return sum((sharing(part, normalised) for part in parts), [])
    credit = scorer.options.get("credit", getattr(_reward_class(scorer), "credit", None))
    return [scorer.reward] if normalised and credit == SHARED else []


def is_of_ones_own(scorer: Config) -> bool:
    """Returns whether a scorer, or a part of it, is not shipped: `package.module:Class`."""
    if scorer.reward == WEIGHTED_SUM:
        return any(map(is_of_ones_own, scorer.options.scorers.values()))
    return ":" in scorer.reward


def is_on_host(scorer: Config) -> bool:
    """Returns whether a scorer, or a part of it, is a `host_reward`.

    Raises:
      UserError: its address has a password, which is refused before anything shows the config.
    """
    if scorer.reward == WEIGHTED_SUM:
        return any(map(is_on_host, scorer.options.scorers.values()))
    if scorer.reward == HOST_REWARD:
        check_address(scorer.path)
    return scorer.reward == HOST_REWARD
