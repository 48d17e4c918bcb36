"""The published reward models in PyTorch, with random weights, as their authors run them.

What `benchmarks/rewards.py`, `benchmarks/reward_parity.py` and the tests hold this project's
rewards against: transformers' models and the published preprocessing, done twice, by Pillow in 8
bits, and by PyTorch's antialiased bicubic in floating point. Nothing else imports torch.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from diffusionrl_jax.models.folders import published
from originals import blip, clip, detectors, jpeg

# Name -> how it is made, and its published size. Of detection there are two.
ORIGINALS = {
    "image_reward": (blip.make, blip.PUBLISHED),
    "hps_v2": (clip.make, clip.VIT_H),
    "pick_score": (clip.make, clip.VIT_H),
    "clip_score": (clip.make, clip.VIT_L),
    "aesthetic": (clip.make, clip.VIT_L),
    "owl_vit": (detectors.make, published.OWL_VIT),
    "owlv2": (detectors.make, published.OWLV2),
    "statistical_parity": (clip.make_parity, clip.PARITY),
    "jpeg_size": (jpeg.make, {}),
}


class Original(Protocol):
    """A reward model in PyTorch.

    Attributes:
      reward: its name in `REWARDS`.
      prompts: eight that it can score.
    """

    reward: str
    prompts: Sequence[str]

    def write(self, folder: Path) -> None:
        """Writes the folder that the reward loads, under the published keys, in float16."""

    def score(
        self, pictures: Sequence[np.ndarray], prompts: Sequence[str], eight_bits: bool
    ) -> np.ndarray:
        """Scores uint8 pictures [H, W, 3] of any sizes: float32 [n].

        With `eight_bits` as published; else the same resizing in floating point.
        """


def make(name: str, folder: Path, config: dict | None = None) -> Original:
    """An original with random weights that float16 holds exactly.

    Args:
      name: in `ORIGINALS`.
      folder: gets the tokenizer; `Original.write` adds the rest.
      config: of another size than the published one.
    """
    torch.manual_seed(0)
    family, published = ORIGINALS[name]
    return family(name, folder, published if config is None else config)


def tiny(name: str) -> dict:
    """A config with towers of two layers, for pictures of 32 pixels."""
    config = copy.deepcopy(ORIGINALS[name][1])
    small = {"num_hidden_layers": 2, "num_attention_heads": 4}
    if "vision_config" in config:
        config["vision_config"] |= small | {"hidden_size": 32, "intermediate_size": 64}
        config["vision_config"] |= {"image_size": 32, "patch_size": 8}
    if "text_config" in config:
        config["text_config"] |= small | {"hidden_size": 24, "intermediate_size": 48}
        config["text_config"] |= {"vocab_size": 600, "bos_token_id": 598, "eos_token_id": 599}
    if "projection_dim" in config:  # a detector's is as wide as its text tower
        config["projection_dim"] = 24 if "model_type" in config else 20
    return config
