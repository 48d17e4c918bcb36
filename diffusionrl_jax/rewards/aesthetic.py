"""LAION's aesthetic score, version 2: how beautiful a picture is, whatever its prompt.

It is Schuhmann's improved-aesthetic-predictor, `sac+logos+ava1-l14-linearMSE`: linear layers on the
embedding of OpenAI's CLIP ViT-L/14.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers.models.clip.modeling_flax_clip import FlaxCLIPVisionModule

from diffusionrl_jax.models.towers import clip, heads
from diffusionrl_jax.rewards import checkpoint, preprocessing


@dataclasses.dataclass(frozen=True, eq=False)
class Aesthetic:
    """The reward that scores the picture's embedding with the published head.

    Attributes:
      tower: CLIP's image tower.
      width: the width of CLIP's joint space.
      mlp_widths: the widths of the head's hidden layers.
    """

    tower: FlaxCLIPVisionModule
    width: int
    mlp_widths: tuple[int, ...] = (1024, 128, 64, 16)

    @classmethod
    def load(cls, path: str, dtype: jnp.dtype = jnp.float32) -> tuple["Aesthetic", dict[str, Any]]:
        """Opens a folder with config.json and model.safetensors.

        config.json has CLIPConfig's "vision_config" and "projection_dim", and `mlp_widths` if they
        are not the published ones. model.safetensors has `vision_model.*` and `visual_projection.*`
        of transformers' CLIPModel, and `layers.*` of the published head.

        Args:
          path: the folder.
          dtype: the dtype that the tower computes in.

        Returns:
          The reward and its parameters.

        Raises:
          FileNotFoundError, UserError: a file or a tensor is missing or does not fit.
        """
        folder, config = checkpoint.read_config(path, required=("vision_config", "projection_dim"))
        fields = {"mlp_widths": tuple(config["mlp_widths"])} if "mlp_widths" in config else {}
        tower = clip.vision_tower(config["vision_config"], dtype)
        reward = cls(tower=tower, width=config["projection_dim"], **fields)
        return reward, checkpoint.read_params(folder, reward.template())

    def template(self) -> dict:
        """Returns the parameters' shapes: the image tower's, its projection's and the head's."""
        return {
            **clip.vision_template(self.tower),
            "visual_projection": clip.projection_template(self.tower, self.width),
            **heads.stack_template((self.width, *self.mlp_widths, 1)),
        }

    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns nothing, since the score does not depend on the prompt."""
        del prompts
        return {}

    def embed(self, params: Mapping, images: jax.Array) -> jax.Array:
        """Returns the pictures' embeddings, float32 [n, width] of norm 1; see `__call__`."""
        pixels = preprocessing.square(images, self.tower.config.image_size)
        return clip.embed_image(self.tower, params, pixels)

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Scores images [n, height, width, 3] in [0, 1]: float32 [n], from about 1 (ugly) to 10."""
        del inputs
        return heads.stack(params, self.embed(params, images))[:, 0]
