"""A step of the optimiser on one batch, which each device computes a microbatch at a time."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from diffusionrl_jax.distributed.gradients import mean_over_devices
from diffusionrl_jax.distributed.microbatch import mean_over_microbatches, microbatch_count
from diffusionrl_jax.learning.examples import Examples
from diffusionrl_jax.learning.state import DRAWING, TRAILING, TrainState
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_to_image import Text


@dataclasses.dataclass(frozen=True, eq=False)
class Learner:
    """Takes the optimiser's steps.

    Attributes:
      optimizer: the optax optimiser.
      ema_decay: the decay of the parameters' exponential moving average over iterations. It has no
        effect where the state keeps no average.
      follower_decay: how the decay of the average in the state's memory grows: from the first
        number by the second with each iteration, up to the third.
      microbatch: how many samples each device takes at a time, in whole groups where these share
        what they are trained on; 0 means all at once.
      mesh: the devices.
    """

    optimizer: optax.GradientTransformation
    ema_decay: float
    microbatch: int
    mesh: Mesh
    follower_decay: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def microbatches(self, rows: int, group: int) -> int:
        """Returns in how many microbatches the rows of a batch are taken.

        Args:
          rows: the number of rows.
          group: how many samples each row stands for.
        """
        return microbatch_count(rows, self.microbatch // group, self.mesh.size)

    def update(
        self,
        loss: Callable,
        reductions: Mapping[str, str],
        gather: Callable[[Parameters], tuple],
        state: TrainState,
        example: Examples,
        text: Text,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Takes one step on the examples of one update, which have no axis U.

        Args:
          loss: a function of (params, base, example, text), as `Objectives.loss`.
          reductions: for each of its metrics, "mean" or "max".
          gather: a function from the parameters that are trained to the first two arguments of the
            loss, which are whole on every device, or shards that the loss gathers.
          state: the train state. Its `step` does not change here.
          example: one slice of the examples along U.
          text: all rows of text; the example's `text` says which of them it has.

        Returns:
          The new state, and the loss' metrics with "gradient_norm", the global norm of the gradient
          before it is clipped.
        """
        text = jax.tree.map(lambda rows: rows[example.text], text)
        leaves, structure = jax.tree.flatten(example)
        per_sample = [leaf for leaf in leaves if leaf.ndim]
        shared = [leaf for leaf in leaves if not leaf.ndim]
        count = self.microbatches(len(example.latents), example.group)
        in_state = [leaf.dtype for leaf in jax.tree.leaves(state.params)]

        def rebuild(per_sample, shared):
            of_samples, of_all = iter(per_sample), iter(shared)
            both = (next(of_samples if leaf.ndim else of_all) for leaf in leaves)
            return jax.tree.unflatten(structure, both)

        def gradient(whole, share):
            params, base, shared = whole

            def of_microbatch(part):
                part, text = part
                part = rebuild(part, shared)
                gradients, metrics = jax.grad(loss, has_aux=True)(params, base, part, text)
                in_full = lambda gradient, dtype: gradient.astype(dtype)
                dtypes = jax.tree.unflatten(jax.tree.structure(gradients), in_state)
                return jax.tree.map(in_full, gradients, dtypes), metrics

            return mean_over_microbatches(of_microbatch, share, count, reductions)

        gradients, metrics = mean_over_devices(gradient, state.params, self.mesh, reductions)(
            (*gather(state.params), shared), (per_sample, text)
        )
        changes, optimizer_state = self.optimizer.update(
            gradients, state.optimizer_state, state.params
        )
        params = optax.apply_updates(state.params, changes)
        metrics["gradient_norm"] = optax.global_norm(gradients)
        return dataclasses.replace(state, params=params, optimizer_state=optimizer_state), metrics

    def finish(self, state: TrainState) -> TrainState:
        """Ends the iteration: counts it, and moves the parameters' averages where they are kept."""
        average = state.ema_params
        if average is not None:
            average = optax.incremental_update(state.params, average, 1 - self.ema_decay)
        state = dataclasses.replace(state, step=state.step + 1, ema_params=average)
        first, rate, largest = self.follower_decay
        move = 1 - jnp.minimum(first + rate * state.step, largest)
        followers = {
            name: state.memory[name] for name in (DRAWING, TRAILING) if name in state.memory
        }
        return state.remember(
            {
                name: optax.incremental_update(state.params, follower, move)
                for name, follower in followers.items()
            }
        )
