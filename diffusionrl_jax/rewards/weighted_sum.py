"""Several rewards as one: their weighted sum."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.mistakes import UserError

SEPARATOR = "/"
# Added to the deviation that scores are divided by.
DEVIATION = 1e-4


@dataclasses.dataclass(frozen=True, eq=False)
class WeightedSum:
    """The sum of rewards of the same pictures and prompts, each times its weight.

    Unless rewards are normalised, a weight is per unit of its reward's own scale. A weight of -1
    turns a reward into a penalty.

    Attributes:
      rewards: name -> reward.
      weights: name -> weight.
      normalised_by: how many neighbours, the images of a prompt, each reward is normalised by
        before the sum, so that none is the loudest (GDPO, 2601.05242): the mean of their scores is
        taken away, and the rest divided by their deviation. The sum then tells the images of a
        prompt apart, and nothing else. 0 adds the scores as they are.

    Raises:
      UserError: there are no rewards, or rewards and weights have different names; or rewards are
        normalised by single images.
    """

    rewards: Mapping
    weights: Mapping[str, float]
    normalised_by: int = 0

    def __post_init__(self):
        if not self.rewards or set(self.rewards) != set(self.weights):
            raise UserError(
                f"A weighted sum of the rewards {sorted(self.rewards)} needs one weight for each, "
                f"and has weights for {sorted(self.weights)}."
            )
        if self.normalised_by == 1:
            raise UserError(
                "A weighted sum that is normalised compares the images of a prompt: set the "
                "group_size to 2 or more."
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
        if self.normalised_by:
            scores = {name: self.normalise(score) for name, score in scores.items()}
        total = sum(jnp.float32(self.weights[name]) * score for name, score in scores.items())
        return jnp.asarray(total)

    def normalise(self, scores: jax.Array) -> jax.Array:
        """Returns scores less their group's mean, in units of its deviation plus 1e-4.

        The small number is that of GRPO's code. Scores that are all the same become 0.

        Args:
          scores: float [n], whole groups.

        Returns:
          float32 [n].
        """
        groups = scores.astype(jnp.float32).reshape(-1, self.normalised_by)
        alike = (groups == groups[:, :1]).all(axis=1, keepdims=True)
        centred = jnp.where(alike, 0, groups - groups.mean(axis=1, keepdims=True))
        return (centred / (groups.std(axis=1, keepdims=True) + DEVIATION)).reshape(-1)
