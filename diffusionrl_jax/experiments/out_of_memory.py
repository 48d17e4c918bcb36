"""Says what to do where the devices' memory does not suffice: a plan is an estimate."""

import contextlib
from collections.abc import Iterator

import jax

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.experiments.planning import Plan
from diffusionrl_jax.mistakes import UserError


@contextlib.contextmanager
def explained(config: Config, plan: Plan) -> Iterator[None]:
    """Turns the error of a device whose memory is full into one that names the plan and the mend.

    Args:
      config: the config, with what the plan has chosen.
      plan: the plan.

    Raises:
      UserError: the memory of a device is full.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        share = config.batch_size // plan.devices.count
        sizes = {name: size or share for name, size in config.microbatch.items()}
        smaller = [
            f"--config.microbatch.{name}={size // 2}" for name, size in sizes.items() if size > 1
        ]
        raise UserError(
            f"A device's memory is full, where the plan was {plan} (in {plan.phase}). Set "
            f"{' '.join(smaller) or 'a smaller config.batch_size'}, or whichever of them is not "
            "enough; else take more chips, or train LoRA (--config.lora.rank=16). The same command "
            f"with them goes on from what is saved. ({str(error).splitlines()[0]})"
        ) from error
