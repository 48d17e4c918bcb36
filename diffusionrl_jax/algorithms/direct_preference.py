"""Diffusion-DPO (2311.12908), online: the best and the worst sample of a prompt are a pair.

A policy that is best for a preference, near the base model, lowers its error for what is preferred
more than for what is not, beside the base model's errors. `offline_preference.py` learns from pairs
of pictures that people chose between.
"""

import dataclasses

import jax
import jax.numpy as jnp

from diffusionrl_jax.algorithms.forward_process import ForwardProcess, Method
from diffusionrl_jax.algorithms.groups import best_of_group, from_group, of_group
from diffusionrl_jax.algorithms.losses import mean_square
from diffusionrl_jax.learning import draws


@dataclasses.dataclass(frozen=True, eq=False)
class DirectPreference(ForwardProcess):
    """The loss of the pair of each group: as often as the group has room, with fresh noise.

    It is -log sigmoid of beta / 2 times how much more the error of the best has fallen from the
    base model's than that of the worst, both of one noise and time. The group's other samples are
    not learned from. A group whose advantages are all equal has no pair, and no loss.

    Attributes:
      beta: how strongly the policy is held to the base model.
    """

    beta: float = 2000.0

    others = ("base",)
    own_metrics = ("preferred",)
    groups = True

    def learned_from(self, scored):
        """Puts the group's pair in the place of its samples, two by two, and says which is which.

        The argument and the result are those of `ForwardProcess.learned_from`. "sign" is 1 for the
        best, -1 for the worst, and 0 in a place that has no pair: in all of a group that has
        none, and in the last place of an odd group.
        """
        latents, own = super().learned_from(scored)

        def of_task(latents, advantages, valid, size):
            number = jnp.arange(len(valid)) % size
            first = number % 2 == 0
            best, worst = (best_of_group(sign * advantages, valid, size) for sign in (1, -1))
            better, worse = (from_group(advantages, place, size) for place in (best, worst))
            paired = (better > worse) & (number // 2 < size // 2)
            chosen = from_group(latents, jnp.where(first, best, worst), size)
            return chosen, jnp.where(paired, jnp.where(first, 1.0, -1.0), 0)

        tasks = zip(latents, scored.advantages, own["valid"], self.group_sizes, strict=True)
        chosen, signs = map(jnp.stack, zip(*(of_task(*task) for task in tasks), strict=True))
        firsts = draws.first_of_group(self.group_sizes, signs.shape[1])
        number = jnp.arange(signs.size).reshape(signs.shape) - firsts
        return chosen, {"group": firsts + number // 2 * 2, "sign": signs}

    def loss(self, output, error, example, active, found):
        """Computes Eq. 14 of 2311.12908, the same for both samples of a pair.

        The arguments and the result are those of `ForwardProcess.loss`.
        """
        own = example.own
        change = jnp.where(active, error - mean_square(own["base"] - own["target"]), 0)
        other = of_group(change, own["group"]) - change
        margin = self.beta / 2 * own["sign"] * (other - change)
        loss = jnp.where(own["sign"] != 0, -jax.nn.log_sigmoid(margin), 0)
        return loss, {"preferred": (margin > 0).astype(jnp.float32)}


DPO = Method("dpo", DirectPreference)
