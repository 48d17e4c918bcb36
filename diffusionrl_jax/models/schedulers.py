"""Reads from a folder's scheduler what noise its denoiser was trained on.

The classes that are read are those of PyTorch's diffusers whose networks were trained on a schedule
of betas over whole timesteps. Their solvers differ, and the chain that is walked here is DDIM's for
all of them.
"""

from collections.abc import Mapping
from typing import Any

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders import fields

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")

# DDIMScheduler's defaults of the fields that a folder leaves out, or sets to null.
DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "rescale_betas_zero_snr": False,
}
BETAS = ("beta_start", "beta_end", "beta_schedule")
_CLIPS = {"clip_sample": True}
_BETAS_OF_STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012}
# The classes that are read, each with the defaults of its noise and of clipping that are others
# than those above.
SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": _CLIPS,
    "DDPMScheduler": _CLIPS,
    "DEISMultistepScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "EulerDiscreteScheduler": {},
    "HeunDiscreteScheduler": _BETAS_OF_STABLE_DIFFUSION,
    "KDPM2DiscreteScheduler": _BETAS_OF_STABLE_DIFFUSION,
    "LMSDiscreteScheduler": {},
    "PNDMScheduler": {},
    "UniPCMultistepScheduler": {},
}

KINDS = {
    "num_train_timesteps": fields.WHOLE,
    "beta_start": fields.BETWEEN_ZERO_AND_ONE,
    "beta_end": fields.BETWEEN_ZERO_AND_ONE,
    "trained_betas": fields.BETWEEN_ZERO_AND_ONE_EACH,
    "steps_offset": fields.WHOLE_OR_ZERO,
    "clip_sample_range": fields.ABOVE_ZERO,
    **dict.fromkeys(
        ("set_alpha_to_one", "clip_sample", "rescale_betas_zero_snr", "thresholding"), fields.FLAG
    ),
}
CHOICES = {
    "beta_schedule": BETA_SCHEDULES,
    "prediction_type": PREDICTION_TYPES,
    "timestep_spacing": TIMESTEP_SPACINGS,
}
# Values that stand for noise that is no beta schedule over whole timesteps, or for what DDIM's
# chain does not do.
REFUSED = {"thresholding": True, "use_flow_sigmas": True, "timestep_type": "continuous"}


def check_class(name: Any, source: object) -> None:
    """Refuses a scheduler whose network was trained on other noise.

    Args:
      name: the scheduler's class.
      source: the file that names it, for the message.

    Raises:
      UserError: the class is not one of `SCHEDULERS`; it names the source, the class and those.
    """
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise UserError(
            f"{source}: the scheduler {name} is not supported, since its noise is no schedule of "
            f"betas that is known here: use a model of one of {', '.join(SCHEDULERS)}."
        )


def check_scheduler(config: Mapping[str, Any], source: object = "The scheduler") -> None:
    """Refuses a scheduler that DDIM's chain would get wrong.

    Args:
      config: the contents of a scheduler_config.json.
      source: that file, for messages.

    Raises:
      UserError: a field is wrong or not supported; it names the source, the field and what the
        field may hold.
    """
    fields.check_fields(config, KINDS, source)
    fields.check_choices(config, CHOICES, source)
    full = with_defaults(config)
    betas, count = full["trained_betas"], full["num_train_timesteps"]
    if betas is not None and len(betas) != count:
        raise UserError(
            f"{source}: trained_betas has {len(betas)} numbers, and must have {count}, as "
            "num_train_timesteps."
        )
    for field, value in REFUSED.items():
        if config.get(field) == value:
            raise UserError(
                f"{source}: {field} {value!r} is not supported: its pictures would be others than "
                "PyTorch's, so use another model."
            )
    if full["rescale_betas_zero_snr"] and full["prediction_type"] == "epsilon":
        raise UserError(
            f"{source}: rescale_betas_zero_snr is for prediction_type 'v_prediction' or 'sample': "
            "at the last timestep it leaves noise alone, from which a predicted noise gives no "
            "picture. One of the two fields is not what the model was trained with: copy both from "
            "its publisher."
        )


def with_defaults(config: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """Returns the config with the defaults of what it leaves out, or sets to null.

    Args:
      config: the contents of a scheduler_config.json.
      name: the scheduler's class, which may have defaults of its own.
    """
    return {**DEFAULTS, **SCHEDULERS.get(name, {}), **fields.without_nulls(config)}
