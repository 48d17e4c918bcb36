"""Reads from a folder's scheduler the times of a model that was trained by flow matching.

The class is PyTorch diffusers' FlowMatchEulerDiscreteScheduler, which Stable Diffusion 3 and FLUX
have.
"""

from collections.abc import Mapping
from typing import Any

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders import fields

FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)
TIME_SHIFTS = ("exponential", "linear")
# The first is that of the scheduler itself, the second that of FLUX's pipeline.
TIMESTEP_SPACINGS = ("linspace", "trailing")

# The scheduler's defaults of the fields that a folder leaves out, or sets to null.
DEFAULTS = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.0,
    "time_shift_type": "exponential",
    "timestep_spacing": "linspace",
}
KINDS = {
    "num_train_timesteps": fields.WHOLE,
    "shift": fields.ABOVE_ZERO,
    "base_shift": fields.ABOVE_ZERO,
    "max_shift": fields.ABOVE_ZERO,
    "base_image_seq_len": fields.WHOLE,
    "max_image_seq_len": fields.WHOLE,
    "shift_terminal": fields.BETWEEN_ZERO_AND_ONE,
    "use_dynamic_shifting": fields.FLAG,
}
CHOICES = {"time_shift_type": TIME_SHIFTS, "timestep_spacing": TIMESTEP_SPACINGS}
REFUSED = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)


def check_flow_scheduler(config: Mapping[str, Any], source: object = "The scheduler") -> None:
    """Refuses a scheduler whose times would be others than PyTorch's.

    Args:
      config: the contents of a scheduler_config.json.
      source: that file, for messages.

    Raises:
      UserError: a field is wrong or not supported; it names the source, the field and what the
        field may hold.
    """
    fields.check_fields(config, KINDS, source)
    fields.check_choices(config, CHOICES, source)
    for field in REFUSED:
        if config.get(field):
            raise UserError(
                f"{source}: {field} {config[field]!r} is not supported: its pictures would be "
                "others than PyTorch's, so set it to false, or use another model."
            )
    base, largest = (
        config.get(name) or DEFAULTS[name] for name in ("base_image_seq_len", "max_image_seq_len")
    )
    if base == largest:
        raise UserError(
            f"{source}: base_image_seq_len and max_image_seq_len are both {base}, and must differ."
        )


def with_flow_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config with the defaults of what it leaves out, or sets to null."""
    return {**DEFAULTS, **fields.without_nulls(config)}
