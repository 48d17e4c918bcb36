"""The rewards. A half of each prepares prompts on the host, the other scores on the device."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from diffusionrl_jax.rewards.aesthetic import Aesthetic
from diffusionrl_jax.rewards.clip_score import ClipScore
from diffusionrl_jax.rewards.colorimetry import ColourParity
from diffusionrl_jax.rewards.detection import Detection
from diffusionrl_jax.rewards.host_reward import HostReward
from diffusionrl_jax.rewards.hps_v2 import HpsV2
from diffusionrl_jax.rewards.image_reward import ImageReward
from diffusionrl_jax.rewards.jpeg_size import JpegSize
from diffusionrl_jax.rewards.pick_score import PickScore
from diffusionrl_jax.rewards.recognition import RecognisedParity, Recognition
from diffusionrl_jax.rewards.requested_objects import RequestedObjects
from diffusionrl_jax.rewards.statistical_parity import StatisticalParity


class Reward(Protocol):
    """What training needs of a reward. Each is a frozen, hashable dataclass without arrays.

    A reward that cannot score every prompt also has a method `check(prompts)`, quick enough for a
    million prompts, which raises a UserError that names a prompt and the mend. If a reward has a
    field `group_size`, a picture that is not finite leaves its whole group without a score, unless
    the reward's `compares_pictures` is false: see `scoring.score`. A reward whose scores have no
    gradient by the pictures has a `has_gradient` that is false. One that gives all pictures of a
    group one score says so by a `credit` of "shared", of the class or as a field.
    """

    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns what `__call__` needs of the prompts: arrays of len(prompts) rows.

        It runs on the host. With `distinct.once_per_prompt` it is called with each of several equal
        prompts only once.
        """
        ...

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Scores images, float32 [n, height, width, 3] in [0, 1]; returns float32 [n].

        It is a pure function that can be jitted.

        Args:
          params: the reward's parameters, from `load`.
          images: the pictures to score.
          inputs: what `prepare` returned, n rows.
        """
        ...


class LoadedReward(Reward, Protocol):
    """A reward that a config names. A sum of rewards is not one."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @classmethod
    def load(cls, path: str, *args: Any, **options: Any) -> tuple[Reward, dict[str, Any]]:
        """Opens a folder or `asset:...`, and returns the reward and its parameters.

        Args:
          path: the folder.
          **options: the fields of the reward that the config sets.
        """
        ...


REWARDS: dict[str, type[LoadedReward]] = {
    "image_reward": ImageReward,
    "hps_v2": HpsV2,
    "pick_score": PickScore,
    "clip_score": ClipScore,
    "aesthetic": Aesthetic,
    "detection": Detection,
    "requested_objects": RequestedObjects,
    "statistical_parity": StatisticalParity,
    "jpeg_size": JpegSize,
    "recognition": Recognition,
    "recognised_parity": RecognisedParity,
    "colour_parity": ColourParity,
    "host_reward": HostReward,
}
