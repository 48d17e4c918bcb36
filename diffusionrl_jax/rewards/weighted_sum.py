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

    Scales are not evened out: a weight is per unit of its reward's own scale. A weight of -1 makes
    a penalty of a reward.

    Attributes:
      rewards: name -> reward.
      weights: name -> weight.
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
        """What each reward prepares, under "name/field"."""
        return {
            f"{name}{SEPARATOR}{field}": rows
            for name, reward in self.rewards.items()
            for field, rows in reward.prepare(prompts).items()
        }

    def parts(self, params: Mapping, images: jax.Array, inputs: Mapping) -> dict[str, jax.Array]:
        """Each reward's own scores, name -> float32 [n]; arguments as of `__call__`."""
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
          params: name -> that reward's.
          images: float [n, H, W, 3] in [0, 1].
          inputs: from `prepare`, n rows.

        Returns:
          float32 [n].
        """
        scores = self.parts(params, images, inputs)
        total = sum(jnp.float32(self.weights[name]) * score for name, score in scores.items())
        return jnp.asarray(total)
