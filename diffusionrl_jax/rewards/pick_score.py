"""PickScore: which of two pictures people would pick for this prompt.

Kirstain et al., arXiv 2305.01569: a CLIP ViT-H/14 tuned on choices. The difference of two scores is
the logit of the choice.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from diffusionrl_jax.rewards.clip_score import ClipScore


class PickScore(ClipScore):
    """The reward that is the cosine of the embeddings times the model's logit scale.

    The folder, the fields and the preprocessing are those of `ClipScore`. The published
    PickScore_v1 loads as it is.
    """

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Scores pictures for their prompts: float32 [n], about 15 to 25 for PickScore_v1."""
        return jnp.exp(params["logit_scale"]) * self.cosine(params, images, inputs)
