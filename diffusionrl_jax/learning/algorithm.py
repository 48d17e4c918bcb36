"""What execution, costs and the training loop know of a method: the protocol."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
from jax.sharding import Mesh

from diffusionrl_jax.learning.experience import Experience
from diffusionrl_jax.learning.phases import Phases
from diffusionrl_jax.rewards import Reward


class Needs(NamedTuple):
    """What a method takes, known from its fields alone.

    Attributes:
      updates: of each task in an iteration.
      steps: K, of how many steps of its chain a sample needs what was done there.
      latents: whether samples' final latents are trained on.
      base: whether the denoiser that training started from is needed.
      drawn_by_base: whether that one draws the samples.
      follower: what follows training in the state's memory: `state.DRAWING`, `state.TRAILING`, or
        None.
      kept_of_example: arrays of a latent's size that an example has beside what the denoiser is
        shown.
      groups: whether the loss compares the samples of a prompt, so that microbatches hold whole
        groups.
      predictions: how often the denoiser runs without a gradient on what is trained on.
    """

    updates: int
    steps: int = 0
    latents: bool = False
    base: bool = False
    drawn_by_base: bool = False
    follower: str | None = None
    kept_of_example: int = 1
    predictions: int = 0
    groups: bool = False


class Algorithm(Protocol):
    """A method of learning from rewards, without arrays. `objectives.Objectives` is one.

    Attributes:
      experience: what draws and scores.
      rewards: one per task.
      mesh: the devices.
      reductions: name of a metric -> how those of several samples become one: "mean" or "max".
    """

    @property
    def experience(self) -> Experience: ...

    @property
    def rewards(self) -> tuple[Reward, ...]: ...

    @property
    def mesh(self) -> Mesh: ...

    @property
    def reductions(self) -> Mapping[str, str]: ...

    def phases(self) -> Phases:
        """The iteration's parts, pure functions."""
        ...

    def summary(
        self, metrics: Mapping[str, np.ndarray], task_names: tuple[str, ...]
    ) -> dict[str, float]:
        """What is logged of an iteration's updates, by name."""
        ...
