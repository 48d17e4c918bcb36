"""Scores by the independent recogniser: for watching a run, never for training it.

They have a reward's interface, so that `evaluate.py` treats them alike.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.towers.recogniser import Recogniser, load_recogniser
from diffusionrl_jax.rewards import mentions
from diffusionrl_jax.rewards.distinct import once_per_prompt
from diffusionrl_jax.rewards.statistical_parity import statistical_parity

THRESHOLD = 0.5  # of the probability from which something counts as recognised


@dataclasses.dataclass(frozen=True, eq=False)
class Recognition:
    """Which share of the objects and occupations that the prompt names is in the picture.

    Attributes:
      recogniser: the network.
      max_labels: at most so many names in a prompt.
    """

    recogniser: Recogniser
    max_labels: int = 2

    @classmethod
    def load(cls, path: str, **options) -> tuple["Recognition", dict]:
        """Opens a recogniser's folder; see `models/towers/recogniser.py`."""
        recogniser, params = load_recogniser(path)
        return cls(recogniser, **options), params

    def _named_labels(self, prompt: str) -> tuple[int, ...]:
        found = mentions.find_names(prompt, self.recogniser.labels)
        if not 1 <= len(found) <= self.max_labels:
            raise UserError(
                f"The prompt {prompt!r} names {len(found)} things that the recogniser knows; "
                f"it can tell 1 to {self.max_labels}."
            )
        return found

    def check(self, prompts: Sequence[str]) -> None:
        """Refuses the prompts that `prepare` would.

        Raises:
          UserError: if one names no label, or too many.
        """
        for prompt in prompts:
            self._named_labels(prompt)

    @once_per_prompt
    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Indices and mask of the labels that each prompt names, [n, max_labels].

        Raises:
          UserError: if a prompt names none, or too many.
        """
        indices = np.zeros((len(prompts), self.max_labels), np.int32)
        mask = np.zeros((len(prompts), self.max_labels), np.float32)
        for row, prompt in enumerate(prompts):
            found = self._named_labels(prompt)
            indices[row, : len(found)] = found
            mask[row, : len(found)] = 1
        return {"labels": indices, "mask": mask}

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """The recognised share: float32 [n] in [0, 1]."""
        probabilities, _ = self.recogniser.recognise(params, images)
        named = jnp.take_along_axis(probabilities, inputs["labels"], axis=1)
        recognised = (named > THRESHOLD) * inputs["mask"]
        return recognised.sum(-1) / inputs["mask"].sum(-1)


@dataclasses.dataclass(frozen=True, eq=False)
class RecognisedParity:
    """Minus the statistical parity of each group, by the recogniser's view of the skin tones.

    Attributes:
      recogniser: the network, trained to see through a tint over the whole picture.
      group_size: pictures per prompt; the pictures of one prompt must be contiguous.
    """

    recogniser: Recogniser
    group_size: int = 16

    @classmethod
    def load(cls, path: str, **options) -> tuple["RecognisedParity", dict]:
        """Opens a recogniser's folder; see `models/towers/recogniser.py`."""
        recogniser, params = load_recogniser(path)
        return cls(recogniser, **options), params

    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Nothing: the score looks at the pictures alone."""
        return {}

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """-SP (Eq. 12) of each picture's group: float32 [n]."""
        _, tones = self.recogniser.recognise(params, images)
        classes = jnp.argmax(tones, -1).reshape(-1, self.group_size)
        parity = statistical_parity(classes, len(self.recogniser.tones))
        return -jnp.repeat(parity, self.group_size)
