"""Scores by the independent recogniser: for watching a run, never for training it.

They have a reward's interface, so that evaluations treat them like any other.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.towers.recogniser import Recogniser, load_recogniser
from diffusionrl_jax.rewards import mentions
from diffusionrl_jax.rewards.distinct import once_per_prompt
from diffusionrl_jax.rewards.statistical_parity import SHARED, in_groups, statistical_parity

THRESHOLD = 0.5  # The probability from which something counts as recognised.


@dataclasses.dataclass(frozen=True, eq=False)
class Recognition:
    """The reward that is the share of the things its prompt names that are in the picture.

    Things are the objects and occupations that the recogniser knows.

    Attributes:
      recogniser: the network.
      max_labels: how many things a prompt may name at most.
    """

    has_gradient: ClassVar[bool] = False

    recogniser: Recogniser
    max_labels: int = 2

    @classmethod
    def load(cls, path: str, **options) -> tuple["Recognition", dict]:
        """Opens a recogniser's folder; see `models/towers/recogniser.py`.

        Args:
          path: the folder.
          **options: the field `max_labels`.
        """
        recogniser, params = load_recogniser(path)
        return cls(recogniser, **options), params

    def _named_labels(self, prompt: str) -> tuple[int, ...]:
        """Returns the labels that a prompt names; raises a UserError if none or too many."""
        found = mentions.find_names(prompt, self.recogniser.labels)
        if not 1 <= len(found) <= self.max_labels:
            raise UserError(
                f"The prompt {prompt!r} names {len(found)} things that the recogniser knows; "
                f"it can tell 1 to {self.max_labels}."
            )
        return found

    def check(self, prompts: Sequence[str]) -> None:
        """Refuses the prompts that `prepare` would refuse.

        Raises:
          UserError: a prompt names no label, or too many.
        """
        for prompt in prompts:
            self._named_labels(prompt)

    @once_per_prompt
    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Finds the labels that each prompt names.

        Returns:
          {"labels": int32 [n, max_labels], indices; "mask": float32 of the same shape, 1 where
          there is a label and 0 elsewhere}.

        Raises:
          UserError: a prompt names no label, or too many.
        """
        indices = np.zeros((len(prompts), self.max_labels), np.int32)
        mask = np.zeros((len(prompts), self.max_labels), np.float32)
        for row, prompt in enumerate(prompts):
            found = self._named_labels(prompt)
            indices[row, : len(found)] = found
            mask[row, : len(found)] = 1
        return {"labels": indices, "mask": mask}

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Returns the share that is recognised, float32 [n] in [0, 1]."""
        probabilities, _ = self.recogniser.recognise(params, images)
        named = jnp.take_along_axis(probabilities, inputs["labels"], axis=1)
        recognised = (named > THRESHOLD) * inputs["mask"]
        return recognised.sum(-1) / inputs["mask"].sum(-1)


@dataclasses.dataclass(frozen=True, eq=False)
class RecognisedParity:
    """The reward that is minus each group's statistical parity, by the tones the recogniser sees.

    Attributes:
      recogniser: the network, which was trained to see through a tint over the whole picture.
      group_size: how many pictures each prompt has; the pictures of one prompt must be neighbours.
    """

    has_gradient: ClassVar[bool] = False
    credit: ClassVar[str] = SHARED

    recogniser: Recogniser
    group_size: int = 16

    @classmethod
    def load(cls, path: str, **options) -> tuple["RecognisedParity", dict]:
        """Opens a recogniser's folder; see `models/towers/recogniser.py`.

        Args:
          path: the folder.
          **options: the field `group_size`.
        """
        recogniser, params = load_recogniser(path)
        return cls(recogniser, **options), params

    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns nothing, since the score does not depend on the prompt."""
        return {}

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Returns -SP (Eq. 12) of each picture's group, float32 [n].

        Raises:
          UserError: n is not a multiple of group_size.
        """
        _, tones = self.recogniser.recognise(params, images)
        classes = in_groups(jnp.argmax(tones, -1), self.group_size)
        parity = statistical_parity(classes, len(self.recogniser.tones))
        return -jnp.repeat(parity, self.group_size)
