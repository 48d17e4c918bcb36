"""The times that chains of rectified flow visit, as PyTorch diffusers' schedulers make them.

They are made on the host, in float64.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def shifted(times, shift: float):
    """Returns times moved towards 1 if the shift is above 1 (2403.03206, Eq. 23).

    The inverse is the same with 1 / shift.
    """
    return shift * times / (1 + (shift - 1) * times)


def shift_of(config: Mapping[str, Any]) -> float:
    """Returns how far a model's times are shifted, where 1 is not at all.

    Args:
      config: a scheduler's config from `flow_schedulers.with_flow_defaults`, which lacks no field.
    """
    if not config["use_dynamic_shifting"]:
        return config["shift"]
    base, largest = config["base_image_seq_len"], config["max_image_seq_len"]
    share = (config["image_tokens"] - base) / (largest - base)
    mu = config["base_shift"] + share * (config["max_shift"] - config["base_shift"])
    return math.exp(mu) if config["time_shift_type"] == "exponential" else mu


def euler_times(config: Mapping[str, Any], steps: int) -> np.ndarray:
    """Returns the times of `FlowMatchEulerDiscreteScheduler`, float64 [steps + 1], from 1 to 0.

    Args:
      config: as in `shift_of`.
      steps: the number of steps.
    """
    shift = shift_of(config)
    if config["timestep_spacing"] == "trailing":
        times = np.linspace(1, 1 / steps, steps)
    else:
        least = 1 / config["num_train_timesteps"]
        # The scheduler shifts its least time when it is made, and then again with all others.
        least = least if config["use_dynamic_shifting"] else shifted(least, shift)
        times = np.linspace(1, least, steps)
    times = shifted(times, shift)
    if config["shift_terminal"] and steps > 1:
        times = 1 - (1 - times) * (1 - config["shift_terminal"]) / (1 - times[-1])
    times[0] = 1.0  # Of noise alone, also where a shift has rounded it.
    return np.append(times, 0)


def solver_times(config: Mapping[str, Any], steps: int) -> np.ndarray:
    """Returns the times of `DPMSolverMultistepScheduler` for flows, float64 [steps + 1], down to 0.

    On the times of the Euler scheduler, the last of which are very close to 0 and to each other's
    noise, second order is worse than first.

    The arguments are those of `euler_times`.
    """
    first = 1 - 1 / config["num_train_timesteps"]
    return shifted(np.linspace(first, 0, steps + 1), shift_of(config))


def extrapolation(times: np.ndarray) -> np.ndarray:
    """Returns how far DPM-Solver++(2M) (2211.01095) extrapolates the guesses of the clean latents.

    Args:
      times: the times that the chain visits, float64 [steps + 1], below 1 and down to 0.

    Returns:
      float64 [steps], in multiples of the change since the last guess. It is 0 in the first step,
      which has no guess before it, and in the last one, onto clean latents.
    """
    half_log_snr = np.log1p(-times[:-1]) - np.log(times[:-1])
    change = np.diff(half_log_snr)
    return np.concatenate([[0], change[1:] / (2 * change[:-1]), [0]])[: len(times) - 1]
