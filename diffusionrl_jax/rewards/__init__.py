"""Reward models: a host half that prepares prompts, a device half that scores pictures."""

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
from diffusionrl_jax.rewards.statistical_parity import StatisticalParity


class Reward(Protocol):
    """What training needs of a reward; each is a frozen dataclass without arrays, hashable.

    One that can't score every prompt has a method `check(prompts)`, too, quick enough for a million
    of them, which raises a UserError that names a prompt and the mend. Of one with a field
    `group_size` a picture that is not finite leaves its whole group without a score, unless its
    `compares_pictures` is false: see `scoring.score`.
    """

    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """What `__call__` needs of the prompts, each array with len(prompts) rows; on the host.

        `distinct.once_per_prompt` spares it the prompts that come again.
        """
        ...

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Scores images, float32 [n, H, W, 3] in [0, 1]: float32 [n]. Pure, can be jitted."""
        ...


class LoadedReward(Reward, Protocol):
    """A reward that a config names; a sum of rewards is none."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @classmethod
    def load(cls, path: str, *args: Any, **options: Any) -> tuple[Reward, dict[str, Any]]:
        """Opens a folder (or `asset:...`): the reward and its parameters; options are fields."""
        ...


REWARDS: dict[str, type[LoadedReward]] = {
    "image_reward": ImageReward,
    "hps_v2": HpsV2,
    "pick_score": PickScore,
    "clip_score": ClipScore,
    "aesthetic": Aesthetic,
    "detection": Detection,
    "statistical_parity": StatisticalParity,
    "jpeg_size": JpegSize,
    "recognition": Recognition,
    "recognised_parity": RecognisedParity,
    "colour_parity": ColourParity,
    "host_reward": HostReward,
}
