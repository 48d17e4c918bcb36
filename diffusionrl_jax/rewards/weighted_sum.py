"""Several rewards as one: their weighted sum."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.mistakes import UserError

SEPARATOR = "/"


@dataclasses.dataclass(frozen=True, eq=False)
class WeightedSum:
    """The sum of rewards of the same pictures and prompts, each times its weight.

    Differences of scale are not evened out: a weight is per unit of its reward's own scale. A
    weight of -1 turns a reward into a penalty.

    Attributes:
      rewards: name -> reward.
      weights: name -> weight.

    Raises:
      UserError: there are no rewards, or rewards and weights have different names.
    """

    rewards: Mapping
    weights: Mapping[str, float]

    def __post_init__(self):
        if not self.rewards or set(self.rewards) != set(self.weights):
            raise UserError(
                f"A weighted sum of the rewards {sorted(self.rewards)} needs one weight for each, "
                f"and has weights for {sorted(self.weights)}."
            )

    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns what each reward prepares, under "name/field"."""
        return {
            f"{name}{SEPARATOR}{field}": rows
            for name, reward in self.rewards.items()
            for field, rows in reward.prepare(prompts).items()
        }

    def parts(self, params: Mapping, images: jax.Array, inputs: Mapping) -> dict[str, jax.Array]:
        """Returns each reward's own scores, name -> float32 [n]. The arguments are `__call__`'s."""
        scores = {}
        for name, reward in self.rewards.items():
            prefix = name + SEPARATOR
            own = {
                field.removeprefix(prefix): rows
                for field, rows in inputs.items()
                if field.startswith(prefix)
            }
            scores[name] = reward(params[name], images, own)
        return scores

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Scores pictures for their prompts.

        Args:
          params: name -> that reward's parameters.
          images: float [n, height, width, 3] in [0, 1].
          inputs: what `prepare` returned, n rows.

        Returns:
          float32 [n].
        """
        scores = self.parts(params, images, inputs)
        total = sum(jnp.float32(self.weights[name]) * score for name, score in scores.items())
        return jnp.asarray(total)
