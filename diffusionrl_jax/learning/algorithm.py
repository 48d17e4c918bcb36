"""The protocol of a method: all that execution, costs and the training loop know of it."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, NoReturn, Protocol

import numpy as np
from jax.sharding import Mesh

from diffusionrl_jax.learning.experience import Experience
from diffusionrl_jax.learning.phases import Phases
from diffusionrl_jax.learning.state import DRAWING
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.rewards import Reward


class Needs(NamedTuple):
    """What a method needs from an iteration, as far as its config fields alone determine it.

    Attributes:
      updates: how many updates an iteration makes for each task; of several methods `together`, for
        all tasks.
      steps: K, how many steps of each sample's chain are kept to be trained on.
      late_steps: among how many last steps of the chain these are; see `sampling.Sampling`.
      latents: whether the samples' final latents are trained on.
      base: whether the denoiser that training started from is needed.
      drawn_by_base: whether that denoiser draws the samples.
      follower: the average of the parameters that the state's memory keeps: `state.DRAWING`,
        `state.TRAILING`, or None.
      kept_of_example: how many arrays of a latent's size an example has beside what the denoiser is
        shown.
      groups: whether the samples of a prompt are trained on together, so that microbatches hold
        whole groups.
      reward_gradient: whether rewards are differentiated by the latents that are scored.
      predictions: how often the denoiser runs without a gradient on what an update is trained on;
        of several methods `together`, on what all updates are trained on.
      chain_gradient: whether gradients are pulled back through steps of the chain.
      branches: into how many parts a task's groups are split, each of which shares its chain up to
        the step that is trained on; see `sampling.Sampling`.
      pairs: whether pairs of pictures are learned from, and nothing is drawn. There are `updates`
        on them, and none of the tasks.
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
    reward_gradient: bool = False
    late_steps: int = 0
    chain_gradient: bool = False
    pairs: bool = False
    branches: int = 0


def together(found: Mapping[str, tuple[Needs, int]]) -> Needs:
    """Returns what several methods need of one iteration.

    Args:
      found: what each method needs, by its name, and how many tasks learn by it.

    Raises:
      UserError: they cannot share an iteration's samples; it names them, and says why.
    """
    needs = {name: one for name, (one, _) in found.items()}
    of_updates = [(one, 1 if one.pairs else tasks) for one, tasks in found.values()]
    chains = {name: (one.steps, one.late_steps) for name, one in needs.items() if one.steps}
    followers = {name: one.follower for name, one in needs.items() if one.follower}
    alone = [name for name, one in needs.items() if one.pairs or one.branches]
    if len(needs) > 1 and alone:
        _refuse(needs, f"{alone[0]} draws as it alone can, from pairs or with a shared prefix")
    if len(set(chains.values())) > 1:
        _refuse(chains, "they are trained on other steps of the chain")
    if len({one.drawn_by_base for one in needs.values()}) > 1:
        _refuse(needs, "the base model would draw for one, and the trained one for another")
    if len(followers) > 1:
        _refuse(followers, "each has an average of its own that follows the parameters")
    of_policy = [name for name, one in needs.items() if one.steps and not one.late_steps]
    if of_policy and DRAWING in followers.values():
        _refuse(needs, f"{of_policy[0]} needs the policy's own steps, and an average would draw")
    steps, late_steps = next(iter(chains.values()), (0, 0))
    any_of = lambda field: any(getattr(one, field) for one in needs.values())
    return Needs(
        updates=sum(one.updates * times for one, times in of_updates),
        steps=steps,
        latents=any_of("latents"),
        base=any_of("base"),
        drawn_by_base=any_of("drawn_by_base"),
        follower=next(iter(followers.values()), None),
        # Examples of one method have room for what the others' take.
        kept_of_example=sum(one.kept_of_example for one in needs.values()),
        predictions=sum(one.predictions * one.updates * times for one, times in of_updates),
        groups=any_of("groups"),
        reward_gradient=any_of("reward_gradient"),
        late_steps=late_steps,
        chain_gradient=any_of("chain_gradient"),
        pairs=any_of("pairs"),
        branches=max((one.branches for one in needs.values()), default=0),
    )


def _refuse(names: Iterable[str], reason: str) -> NoReturn:
    raise UserError(
        f"The methods {' and '.join(names)} cannot learn from the samples of one iteration: "
        f"{reason}. Set config.tasks.*.algorithm or config.algorithm.name to others."
    )


class Algorithm(Protocol):
    """A method of learning from rewards. It holds no arrays; `objectives.Objectives` is one.

    Attributes:
      experience: draws the samples and scores them.
      rewards: the rewards, one per task.
      mesh: the devices.
      reductions: for each metric, by name, how the values of several samples become one: "mean" or
        "max".
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
        """Returns the parts of an iteration, which are pure functions."""
        ...

    def summary(
        self, metrics: Mapping[str, np.ndarray], task_names: tuple[str, ...]
    ) -> dict[str, float]:
        """Returns what is logged of an iteration's updates, by name.

        Args:
          metrics: the iteration's metrics as host arrays, from `phases.iteration`.
          task_names: the tasks' names, in order.
        """
        ...
