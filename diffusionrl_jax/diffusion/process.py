"""What every chain from noise to a picture has in common: the protocol, and who satisfies it."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from diffusionrl_jax.diffusion.ddim import make_ddim
from diffusionrl_jax.diffusion.gaussian import MINIMUM_STD, Gaussian
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.schedulers import SCHEDULERS


class Process(Protocol):
    """A chain of denoising steps, and the noising that its network was trained on.

    Latents are float32 [n, ...], of any rank; times are integers or reals, as the network takes
    them. `ddim.DDIM` is one.

    Attributes:
      steps: S, of the chain.
      stochastic_steps: how many of these, the first ones, have noise where eta is not 0.
      times: [S], where each step is taken from.
    """

    @property
    def steps(self) -> int: ...

    @property
    def stochastic_steps(self) -> int: ...

    @property
    def times(self) -> jax.Array: ...

    def draw_time(self, key: jax.Array) -> jax.Array:
        """A scalar time as training draws it."""
        ...

    def noise(self, clean: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
        """Clean latents noised to times [n]."""
        ...

    def target(self, clean: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
        """What the network should say of `noise(...)`."""
        ...

    def clean(self, output: jax.Array, latents: jax.Array, times: jax.Array) -> jax.Array:
        """The clean latents, as the network's output has them."""
        ...

    def step(
        self, output: jax.Array, latents: jax.Array, step_index: jax.Array, eta: float
    ) -> Gaussian:
        """Where a step of the chain leads to; eta 0 is without noise."""
        ...


# Class of a folder's scheduler -> the chain of a config and a number of steps. What the model was
# trained on decides, not the solver that its folder names: all of these noise as DDIM does.
PROCESSES = dict.fromkeys(SCHEDULERS, make_ddim)


def make_process(scheduler_config: Mapping[str, Any], steps: int) -> Process:
    """The chain of a model.

    Args:
      scheduler_config: contents of the folder's scheduler_config.json.
      steps: number of denoising steps.

    Raises:
      UserError: the scheduler is not known, or does not fit; see `ddim.make_ddim`.
    """
    name = scheduler_config.get("_class_name", "DDIMScheduler")
    if name not in PROCESSES:
        raise UserError(f"The scheduler {name} is not supported: use one of {sorted(PROCESSES)}.")
    return PROCESSES[name](scheduler_config, steps)


def sensitivity(process: Process, eta: float) -> jax.Array:
    """How far the network's output moves a step's mean, in that step's standard deviations.

    The log-probability's gradient is proportional to it. With the tiny noise of a last step onto
    timestep 1 it may be 8 times that of all others, whose gradients then drown in that one's.

    Returns:
      float32 [steps]; large, but finite, where a step has no noise.
    """
    index = jnp.arange(process.steps)
    unit = jnp.ones((process.steps, 1, 1, 1))
    zeros = jnp.zeros_like(unit)
    step = lambda output: process.step(output, zeros, index, eta)
    # At 0, where nothing is clipped.
    moved, change = jax.jvp(step, (zeros,), (unit,))
    return (jnp.abs(change.mean) / jnp.maximum(moved.std, MINIMUM_STD)).reshape(-1)
