"""Gathers an iteration's metrics by name, and stops a run whose numbers are not finite."""

import math
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from diffusionrl_jax.learning.algorithm import Algorithm


def summarise(
    metrics: Mapping[str, jax.Array], task_names: Sequence[str], algorithm: Algorithm
) -> dict[str, float]:
    """Returns an iteration's metrics by name, as they are logged.

    Args:
      metrics: the metrics that the train step returned.
      task_names: the tasks' names, in order.
      algorithm: the method, which says how its updates' metrics are logged.

    Returns:
      "<task>/reward_mean", "<task>/reward_std" and "<task>/invalid_rewards", unless nothing is
      drawn, and what the algorithm logs of its updates, under names of its own.
    """
    numbers = {name: np.asarray(values, np.float64) for name, values in metrics.items()}
    result = {
        f"{name}/{metric}": numbers[metric][task]
        for task, name in enumerate(task_names)
        for metric in ("reward_mean", "reward_std", "invalid_rewards")
        if metric in numbers
    }
    result |= algorithm.summary(numbers, tuple(task_names))
    return {name: float(value) for name, value in result.items()}


def means_by_task(
    values: Mapping[str, np.ndarray], task_names: Sequence[str], metrics: Iterable[str]
) -> dict[str, float]:
    """Averages metrics of updates over those of each task.

    Args:
      values: each metric's values, [U], one task's updates after another's.
      task_names: the tasks' names, in order.
      metrics: the names of the metrics.

    Returns:
      "<task>/<metric>" for each task and metric.
    """
    return {
        f"{task}/{metric}": values[metric].reshape(len(task_names), -1)[row].mean()
        for row, task in enumerate(task_names)
        for metric in metrics
    }


def gradient_rms(norms: np.ndarray, parameters: int, clip: float) -> float:
    """Returns the least root mean square of the gradients of an iteration's updates, once clipped.

    Adam divides by the gradients' size plus its epsilon: where they are smaller than that, steps
    are smaller than the learning rate says. Where all updates are one step, Adam sees their mean,
    which is smaller where they differ.

    Args:
      norms: the gradients' norms before they are clipped, [U].
      parameters: how many numbers a gradient has.
      clip: the largest norm; 0 does not clip.

    Returns:
      It in the loss's units; updates without a gradient are left out, and it is 0 if none has any.
    """
    clipped = np.minimum(norms, clip) if clip else norms
    there = clipped[clipped > 0]
    return float(there.min() / math.sqrt(parameters)) if len(there) else 0.0


def check_finite(
    values: Mapping[str, float],
    metrics: Mapping[str, jax.Array],
    task_names: Sequence[str],
    batch_size: int,
) -> None:
    """Stops a run that cannot go on, before a broken state is saved.

    Args:
      values: the metrics by name, from `summarise`.
      metrics: the metrics that the train step returned.
      task_names: the tasks' names, in order.
      batch_size: B, the number of samples of each task.

    Raises:
      FloatingPointError: a gradient's norm is not finite, or no reward of a task is.
    """
    for task, name in enumerate(task_names):
        if "invalid_rewards" in metrics and metrics["invalid_rewards"][task] == batch_size:
            raise FloatingPointError(
                f"All {batch_size} rewards of task {name!r} are NaN or infinite: check its reward "
                "model."
            )
    for name, value in values.items():
        if name.endswith("gradient_norm") and not np.isfinite(value):
            raise FloatingPointError(f"{name} is {value}.")
