"""The methods of learning, by the name that a config gives them: one for all tasks, or for each."""

from collections.abc import Mapping
from typing import Any

from diffusionrl_jax.algorithms import (
    centred_reward,
    direct_preference,
    draft_k,
    draft_lv,
    forward_process,
    offline_preference,
    policy_gradient,
    raft,
    refl,
    reward_gradient,
    reward_weighted,
)
from diffusionrl_jax.data.config_type import Config, copied
from diffusionrl_jax.learning.algorithm import Needs, together

# Name -> module or `Method`. Its `needs` takes the method's own config fields, its `check` and its
# `make` a config whose tasks all learn by it, `make` a process, too. Where tasks learn by several,
# it is in this order.
ALGORITHMS = {
    "policy_gradient": policy_gradient,
    "reward_weighted": reward_weighted,
    "raft": raft,
    "reward_gradient": reward_gradient,
    "refl": refl,
    "draft_k": draft_k,
    "draft_lv": draft_lv,
    "nft": forward_process.NFT,
    "awm": forward_process.AWM,
    "dgpo": forward_process.DGPO,
    "crd": centred_reward.CRD,
    "dpo": direct_preference.DPO,
    "dpo_offline": offline_preference,
}
# Those that were published for training without classifier-free guidance.
UNGUIDED = ("refl", "nft", "awm", "dgpo", "crd", "dpo")


def method_of(config: Config | Mapping[str, Any], task: str) -> str:
    """Returns the name of the method that a task learns by: its own, or `config.algorithm.name`.

    Args:
      config: see `experiments/config.py`, or what a config.json holds of it.
      task: the task's name.
    """
    return config["tasks"][task]["algorithm"] or config["algorithm"]["name"]


def tasks_by_method(config: Config | Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Returns the names of the tasks that learn by each method, in the order of `ALGORITHMS`.

    Tasks of weight 0 do not learn.

    Args:
      config: as in `method_of`.
    """
    learn = [name for name, task in config["tasks"].items() if task["weight"]]
    by_task = {task: method_of(config, task) for task in learn}
    found = {name: tuple(task for task in by_task if by_task[task] == name) for name in ALGORITHMS}
    return {name: tasks for name, tasks in found.items() if tasks}


def of_method(config: Config, name: str) -> Config:
    """Returns a copy of a config that has only the tasks that learn by a method."""
    own = copied(config)
    own.algorithm.name = name
    for task in set(config.tasks) - set(tasks_by_method(config)[name]):
        del own.tasks[task]
    return own


def check(config: Config) -> None:
    """Refuses a config that does not fit one of its methods.

    Raises:
      UserError: it does not fit, or the methods cannot learn together; it says why.
    """
    needs_of(config)
    for name in tasks_by_method(config):
        ALGORITHMS[name].check(of_method(config, name))


def needs_of_method(config: Config, name: str) -> Needs:
    """Returns what one method takes, with its fields in the config."""
    return ALGORITHMS[name].needs(config.algorithm[name])


def needs_of(config: Config) -> Needs:
    """Returns what the methods of a config's tasks take together, with the updates of all tasks.

    Raises:
      UserError: methods cannot learn from the samples of one iteration; it says which, and why.
    """
    return together(
        {
            name: (needs_of_method(config, name), len(tasks))
            for name, tasks in tasks_by_method(config).items()
        }
    )


def pairs_of(config: Config) -> tuple[str, str] | None:
    """Returns the field that names the pairs of pictures that are learned from, and what it holds.

    It is None where the config's method learns from none.
    """
    if not needs_of(config).pairs:
        return None
    (method,) = tasks_by_method(config)
    return f"config.algorithm.{method}.pairs", config.algorithm[method].pairs
