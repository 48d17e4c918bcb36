"""Centred reward distillation (CRD, 2603.14128): rewards and their likeness agree within a group.

Of a policy that is best for a reward, at a given distance from another policy, the reward follows
up to a number that is the same for all samples of a prompt: how much likelier the policy makes a
sample, beside the other one. Minus the denoising error stands for how likely a sample is. Taking
the mean of a prompt's samples away from both makes the number vanish, and what is left of both is
made equal. The larger the reward, the nearer the base model a sample is kept, so that what is good
already stays, and learning begins fast.
"""

import dataclasses

import jax
import jax.numpy as jnp

from diffusionrl_jax.algorithms.forward_process import ForwardProcess, Method
from diffusionrl_jax.algorithms.groups import centred
from diffusionrl_jax.algorithms.losses import relative_error
from diffusionrl_jax.learning.state import TRAILING

# What the factor of the distance to the base model is at least.
LEAST_REFERENCE = 1e-4


@dataclasses.dataclass(frozen=True, eq=False)
class CentredReward(ForwardProcess):
    """The squared difference of beta times the implied reward and the advantage, both centred.

    The implied reward is how much smaller the denoiser's error is than that of an average of its
    parameters that trails it, each a `relative_error`. Advantages are brought to between 0 and 1:
    the largest asks for an implied reward of 1 / (2 beta). So brought they also multiply the
    distance to the base model. While nothing has moved the gradient of the square is the
    advantage's times the error's, whatever beta is. The paper's base model is guided where it is
    compared with; here all are guided as the samples are drawn.

    Attributes:
      beta: how much the implied reward counts: the larger, the nearer the policy stays.
    """

    beta: float = 1.0

    others = ("trailing",)
    own_metrics = ("implied_reward",)
    groups = True

    def reference_factor(self, example):
        """Returns the factor of the distance to the base model, [B]: it grows with the reward."""
        least = min(LEAST_REFERENCE, self.reference_weight)
        return least + (1 + example.own["advantages"]) / 2 * (self.reference_weight - least)

    def loss(self, output, error, example, active, found):
        """Computes the square of the difference for each sample, 0 for those without a reward.

        The arguments and the result are those of `ForwardProcess.loss`.
        """
        own = example.own
        valid, group = own["valid"], own["group"]
        now, before = (relative_error(it - own["target"]) for it in (output, own["trailing"]))
        implied = jnp.where(active, before - now, 0)
        off = self.beta * centred(implied, valid, group)
        off -= centred(own["advantages"] / 2, valid, group)
        loss = self.most_advantage / self.beta * jnp.square(off)
        return loss, {"implied_reward": jax.lax.stop_gradient(implied)}


CRD = Method("crd", CentredReward, TRAILING)
