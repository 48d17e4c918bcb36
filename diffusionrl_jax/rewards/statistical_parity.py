"""Statistical parity of an attribute over the pictures of one prompt (Eq. 12).

A distribution-level reward: it is a function of a group of pictures. The classifier is a CLIP image
tower with a linear head.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.models import clip, heads
from diffusionrl_jax.rewards import checkpoint, preprocessing

CREDITS = ("shared", "leave_one_out")


def _as_one_hot(classes: jax.Array, num_classes: int | None) -> jax.Array:
    if jnp.issubdtype(classes.dtype, jnp.integer):
        if num_classes is None:
            raise ValueError("Class indices need num_classes; one-hot frequencies do not.")
        return jax.nn.one_hot(classes, num_classes)
    return classes


def _distance_to_uniform(counts: jax.Array) -> jax.Array:
    """|| counts / sum - 1 / classes ||_2 over the last axis."""
    frequencies = counts / jnp.sum(counts, -1, keepdims=True)
    return jnp.sqrt(jnp.sum(jnp.square(frequencies - 1 / counts.shape[-1]), -1))


def statistical_parity(classes: jax.Array, num_classes: int | None = None) -> jax.Array:
    """SP of Eq. 12: the distance between a group's class frequencies and equal ones.

    Args:
      classes: int [groups, m] class indices (with `num_classes`), or float [groups, m, classes]
        one-hot.
      num_classes: how many classes the indices run over.

    Returns:
      float32 [groups]; 0 is parity, sqrt(1 - 1 / classes) is all pictures in one class.
    """
    return _distance_to_uniform(_as_one_hot(classes, num_classes).sum(-2))


def leave_one_out_credit(classes: jax.Array, num_classes: int | None = None) -> jax.Array:
    """What each picture does for its group's parity: SP without it minus SP with it.

    Positive for a picture that brings the group closer to parity. Unlike Eq. 12's shared reward it
    tells the pictures of a group apart, so that the gradient has a direction within the group.

    Args:
      classes: as in `statistical_parity`, with m >= 2.
      num_classes: as in `statistical_parity`.

    Returns:
      float32 [groups, m].
    """
    one_hot = _as_one_hot(classes, num_classes)
    counts = one_hot.sum(-2, keepdims=True)
    return _distance_to_uniform(counts - one_hot) - _distance_to_uniform(counts)


@dataclasses.dataclass(frozen=True, eq=False)
class StatisticalParity:
    """Minus the statistical parity of each prompt's group of pictures.

    Attributes:
      tower: the CLIP image tower and its configuration.
      classes: names of the classes.
      group_size: pictures per prompt; the pictures of one prompt must be contiguous.
      credit: "shared" (Eq. 12: each picture of a group gets -SP) or "leave_one_out".
    """

    tower: Any
    classes: tuple[str, ...]
    group_size: int = 16
    credit: str = "shared"

    def __post_init__(self):
        if self.credit not in CREDITS:
            raise ValueError(f"credit is {self.credit!r}; it must be one of {CREDITS}.")
        if self.group_size < 2:
            raise ValueError(f"group_size is {self.group_size}; parity needs at least 2 pictures.")

    @classmethod
    def load(
        cls, path: str, dtype: jnp.dtype = jnp.float32, **options
    ) -> tuple["StatisticalParity", dict]:
        """Opens a folder with config.json and model.safetensors.

        config.json: {"vision_config": CLIPVisionConfig's fields, "classes": names}.
        model.safetensors: CLIPVisionModel's keys and `classifier.{weight,bias}`.

        Args:
          path: the folder; `asset:emoji/statistical_parity` is the embedded one.
          dtype: of the tower's computation.
          **options: the fields `group_size` and `credit`.

        Raises:
          FileNotFoundError, ValueError: if a file or a tensor is missing or does not fit.
        """
        folder, config = checkpoint.read_config(path, required=("vision_config", "classes"))
        tower = clip.vision_tower(config["vision_config"], dtype)
        reward = cls(tower=tower, classes=tuple(config["classes"]), **options)
        return reward, checkpoint.read_params(folder, reward.template())

    def template(self) -> dict:
        """Shapes of the parameters: the image tower's and the linear head's."""
        head = heads.dense_template(self.tower.config.hidden_size, len(self.classes))
        return {**clip.vision_template(self.tower), "classifier": head}

    def logits(self, params: Mapping, images: jax.Array) -> jax.Array:
        """Class logits of images [n, H, W, 3] in [0, 1]: float32 [n, classes]."""
        pixels = preprocessing.square(images, self.tower.config.image_size)
        pooled = clip.pooled_image(self.tower, params, pixels).astype(jnp.float32)
        return heads.dense(params["classifier"], pooled)

    def classify(self, params: Mapping, images: jax.Array) -> jax.Array:
        """Class probabilities of images [n, H, W, 3] in [0, 1]: float32 [n, classes]."""
        return jax.nn.softmax(self.logits(params, images))

    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Nothing of the prompt is used but its place: groups are contiguous."""
        del prompts
        return {}

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Scores the pictures of whole groups.

        Args:
          params: from `load`.
          images: float [n, H, W, 3] in [0, 1], the `group_size` pictures of a prompt contiguous.
          inputs: from `prepare`; unused.

        Returns:
          float32 [n].

        Raises:
          ValueError: if n is not a multiple of group_size.
        """
        del inputs
        if images.shape[0] % self.group_size:
            raise ValueError(
                f"{images.shape[0]} pictures do not divide into groups of {self.group_size}: make "
                "the batch a multiple of statistical parity's group_size."
            )
        classes = jnp.argmax(self.logits(params, images), -1).reshape(-1, self.group_size)
        if self.credit == "leave_one_out":
            return leave_one_out_credit(classes, len(self.classes)).reshape(-1)
        return jnp.repeat(-statistical_parity(classes, len(self.classes)), self.group_size)
