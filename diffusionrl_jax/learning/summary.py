"""An iteration's metrics by name, and what must not be among them."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from diffusionrl_jax.learning.iteration import Hyperparameters


def summarise(
    metrics: Mapping[str, jax.Array], task_names: Sequence[str], hyperparameters: Hyperparameters
) -> dict[str, float]:
    """An iteration's metrics by name, as they are logged.

    Args:
      metrics: from the train step.
      task_names: of the tasks.
      hyperparameters: of the iteration.

    Returns:
      "<task>/<metric>" means over the task's updates, "ratio_check/mean" and "/max" (|ratio - 1|
      in the first update, at unchanged parameters), and "pretraining/loss".
    """
    metrics = {name: np.asarray(values, np.float64) for name, values in metrics.items()}
    count = hyperparameters.timesteps_per_iteration
    result = {}
    for task, name in enumerate(task_names):
        for metric in ("reward_mean", "reward_std", "invalid_rewards"):
            result[f"{name}/{metric}"] = metrics[metric][task]
        if count:
            rows = slice(task * count, (task + 1) * count)
            of_policy = ("loss", "ratio", "clip_fraction", "approximate_kl", "gradient_norm")
            if hyperparameters.kl_weight:
                of_policy += ("kl_to_base",)
            for metric in of_policy:
                result[f"{name}/{metric}"] = metrics[metric][rows].mean()
    if count:
        result["ratio_check/mean"] = metrics["ratio_error_mean"][0]
        result["ratio_check/max"] = metrics["ratio_error_max"][0]
    if hyperparameters.pretraining_weight:
        result["pretraining/loss"] = metrics["loss"][-1]
        result["pretraining/gradient_norm"] = metrics["gradient_norm"][-1]
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
