"""The size of a JPEG file as Pillow writes it."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from originals import common


@dataclasses.dataclass
class JpegOriginal:
    """jpeg_size, of quality 95."""

    reward = "jpeg_size"
    prompts = common.PROMPTS

    def write(self, folder: Path) -> None:
        """There is nothing to write."""

    def score(
        self, pictures: Sequence[np.ndarray], prompts: Sequence[str], eight_bits: bool
    ) -> np.ndarray:
        """Minus the kilobytes of uint8 pictures [H, W, 3] of any sizes: float32 [n]."""
        sizes = []
        for picture in pictures:
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "JPEG", quality=95)
            sizes.append(file.tell())
        return -np.array(sizes, np.float32) / 1000


def make(reward: str, folder: Path, config: dict) -> JpegOriginal:
    """As `originals.make`."""
    del reward, folder, config
    return JpegOriginal()
