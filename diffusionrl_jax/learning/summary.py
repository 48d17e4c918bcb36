"""An iteration's metrics by name, and what must not be among them."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from diffusionrl_jax.learning.algorithm import Algorithm


def summarise(
    metrics: Mapping[str, jax.Array], task_names: Sequence[str], algorithm: Algorithm
) -> dict[str, float]:
    """An iteration's metrics by name, as they are logged.

    Args:
      metrics: from the train step.
      task_names: of the tasks.
      algorithm: whose metrics they are.

    Returns:
      "<task>/reward_mean", "reward_std" and "invalid_rewards", and what the algorithm says of its
      updates, each under a name of its own.
    """
    numbers = {name: np.asarray(values, np.float64) for name, values in metrics.items()}
    result = {
        f"{name}/{metric}": numbers[metric][task]
        for task, name in enumerate(task_names)
        for metric in ("reward_mean", "reward_std", "invalid_rewards")
    }
    result |= algorithm.summary(numbers, tuple(task_names))
    return {name: float(value) for name, value in result.items()}


def check_finite(
    values: Mapping[str, float],
    metrics: Mapping[str, jax.Array],
    task_names: Sequence[str],
    batch_size: int,
) -> None:
    """Stops a run that can't go on, before what it broke is saved.

    Raises:
      FloatingPointError: if a gradient is not finite, or no reward of a task is.
    """
    for task, name in enumerate(task_names):
        if metrics["invalid_rewards"][task] == batch_size:
            raise FloatingPointError(
                f"All {batch_size} rewards of task {name!r} are NaN or infinite: check its reward "
                "model."
            )
    for name, value in values.items():
        if name.endswith("gradient_norm") and not np.isfinite(value):
            raise FloatingPointError(f"{name} is {value}.")
