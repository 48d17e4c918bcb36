"""The protocol of every chain from noise to a picture, and the processes that satisfy it."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from diffusionrl_jax.diffusion.ddim import make_ddim
from diffusionrl_jax.diffusion.gaussian import MINIMUM_STD, Gaussian
from diffusionrl_jax.diffusion.rectified_flow import make_flow
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.flow_schedulers import FLOW_SCHEDULERS
from diffusionrl_jax.models.schedulers import SCHEDULERS


class Process(Protocol):
    """A chain of denoising steps, and the noising that its network was trained on.

    Latents are float32 [n, ...], of any rank. Times are what `TextToImage.denoise` takes: whole
    timesteps of the training for `ddim.DDIM`, and real numbers from 0 to 1 for
    `rectified_flow.RectifiedFlow`, whose networks multiply them by 1000 themselves.

    Attributes:
      steps: S, the number of the chain's steps.
      stochastic_steps: how many of these, from the first on, add noise, and enough to be trained
        on, where eta is not 0.
      times: [S], the time from which each step is taken.
    """

    @property
    def steps(self) -> int: ...

    @property
    def stochastic_steps(self) -> int: ...

    @property
    def times(self) -> jax.Array: ...

    def draw_time(self, key: jax.Array, least: float = 0.0, most: float = 1.0) -> jax.Array:
        """Draws a scalar time as training does, between two shares of the training's times."""
        ...

    def noise(self, clean: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
        """Returns clean latents noised to times [n], by standard normal noise of their shape."""
        ...

    def target(self, clean: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
        """Returns what the network should predict for what `noise` returns."""
        ...

    def clean(self, output: jax.Array, latents: jax.Array, times: jax.Array) -> jax.Array:
        """Returns the clean latents that the network's output implies.

        Args:
          output: the network's output, float32 [n, ...].
          latents: the latents that it was shown, of the same shape.
          times: [n], their times.
        """
        ...

    def step(
        self,
        output: jax.Array,
        latents: jax.Array,
        step_index: jax.Array,
        eta: float | jax.Array,
    ) -> Gaussian:
        """Returns the distribution of the latents after a step of the chain.

        Args:
          output: the network's output, guided, float32 [n, ...].
          latents: the latents before the step, of the same shape.
          step_index: int32 [n], the step's position in the chain; 0 is the first.
          eta: how much noise the step adds, from 0, which means none, to 1; one number, or float32
            [n].
        """
        ...


# Class of a folder's scheduler -> a function that makes the chain from the scheduler's config and a
# number of steps. What decides is the noising that the model was trained on, not the solver that
# its folder names.
PROCESSES: dict[str, Callable[[Mapping[str, Any], int], Process]] = {
    **dict.fromkeys(SCHEDULERS, make_ddim),
    **dict.fromkeys(FLOW_SCHEDULERS, make_flow),
}


def make_process(
    scheduler_config: Mapping[str, Any],
    steps: int,
    *,
    noise: str = "eta",
    eta: float = 1.0,
    order: int = 1,
    training_times: str = "auto",
) -> Process:
    """Makes the chain of a model.

    Args:
      scheduler_config: the contents of the folder's scheduler_config.json, and what the model's
        family adds to it; see `rectified_flow.make_flow`.
      steps: the number of denoising steps.
      noise: how the steps add noise: "eta" for any chain, and for those of flow matching one of
        `rectified_flow.NOISE_RULES`.
      eta: how much noise the steps add where they are trained on.
      order: the order of the steps. 2 is DPM-Solver++(2M), for chains of flow matching without
        noise.
      training_times: how the times are drawn that the network is trained at: "uniform" for any
        chain, and for those of flow matching one of `rectified_flow.TRAINING_TIMES`; "auto" is
        "logit_normal" for these, and "uniform" for others.

    Raises:
      UserError: the scheduler is unknown, or the chain is asked for what it does not support; see
        `ddim.make_ddim` and `rectified_flow.make_flow`.
    """
    name = scheduler_config.get("_class_name", "DDIMScheduler")
    if name not in PROCESSES:
        raise UserError(f"The scheduler {name} is not supported: use one of {sorted(PROCESSES)}.")
    make = PROCESSES[name]
    if make is make_flow:
        drawn = "logit_normal" if training_times == "auto" else training_times
        return make_flow(
            scheduler_config, steps, noise=noise, eta=eta, order=order, training_times=drawn
        )
    for field, value, own in (
        ("sampler.noise", noise, ("eta",)),
        ("sampler.order", order, (1,)),
        ("training_times", training_times, ("auto", "uniform")),
    ):
        if value not in own:
            raise UserError(
                f"config.{field}={value!r} is for models of flow matching, and this model's "
                f"scheduler is {name}: set it to {own[-1]!r}."
            )
    return make(scheduler_config, steps)


def sensitivity(process: Process, eta: float) -> jax.Array:
    """Computes how far the network's output moves a step's mean, in that step's deviations.

    The gradient of the log-probability is proportional to it. At a last step onto timestep 1, whose
    noise is tiny, it may be 8 times that of all other steps, whose gradients then drown in that
    one's.

    Args:
      process: the chain.
      eta: how much noise its steps add.

    Returns:
      float32 [steps], in standard deviations of the step; large, but finite, where it adds no
      noise.
    """
    index = jnp.arange(process.steps)
    unit = jnp.ones((process.steps, 1, 1, 1))
    zeros = jnp.zeros_like(unit)
    step = lambda output: process.step(output, zeros, index, eta)
    # At 0, where nothing is clipped.
    moved, change = jax.jvp(step, (zeros,), (unit,))
    return (jnp.abs(change.mean) / jnp.maximum(moved.std, MINIMUM_STD)).reshape(-1)
