"""The largest difference between a reward's scores and its PyTorch original's, at published size.

    python benchmarks/reward_parity.py --reward=clip_score

Random weights; eight pictures of eight sizes; one framework after the other. See
docs/reward_models.md. clip_score and aesthetic take 4 GB of memory, pick_score and hps_v2 10 GB.
"""

import argparse
import gc
import tempfile
from pathlib import Path

import numpy as np

from diffusionrl_jax.benchmarking import originals

SIZES = ((512, 512), (512, 768), (768, 512), (427, 640), (224, 224), (200, 301), (333, 517))
SIZES = (*SIZES, (1024, 771))
PROMPTS = (
    "a fox next to a cake",
    "An oil painting of a lighthouse at dusk, by a master",
    "two dogs",
    "",
    "portrait of a judge, 4k, highly detailed " * 5,
    "a cat asleep on a red car",
    "caf\u00e9 in the rain; neon",
    "an astronaut riding a horse on the moon",
)


def make_pictures(sizes=SIZES, seed: int = 0) -> list[np.ndarray]:
    """Smooth colours with noise and hard edges: uint8 [H, W, 3] each."""
    rng = np.random.default_rng(seed)
    pictures = []
    for height, width in sizes:
        rows, columns = np.mgrid[:height, :width] / 40
        waves = rng.normal(size=(3, 2, 1, 1))
        picture = np.sin(waves[:, 0] * rows + waves[:, 1] * columns + rng.normal(size=(3, 1, 1)))
        picture = 0.5 + 0.4 * picture + 0.1 * rng.normal(size=picture.shape)
        picture[:, : height // 3, width // 2 :] = rng.random((3, 1, 1))
        pictures.append((picture.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))
    return pictures


def compare(reward: str, config: dict, sizes=SIZES) -> dict[str, float]:
    """Scores the pictures with both.

    Args:
      reward: a name in `originals.PUBLISHED`.
      config: CLIPConfig's fields.
      sizes: of the pictures, as many as `PROMPTS`.

    Returns:
      "difference" and "difference_in_8_bits", the largest of each with the original that
      preprocesses in floating point and with the published 8-bit preprocessing; "spread", the
      standard deviation of the original's scores.
    """
    pictures = make_pictures(sizes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        original = originals.make(reward, folder, config)
        original.write(folder)
        expected = original.score(pictures, PROMPTS, eight_bits=False)
        in_8_bits = original.score(pictures, PROMPTS, eight_bits=True)
        del original
        gc.collect()
        from diffusionrl_jax.rewards import REWARDS

        model, params = REWARDS[reward].load(str(folder))
        scores = []
        # Not jitted: every picture has another size, and the towers would compile for each.
        for picture, prompt in zip(pictures, PROMPTS, strict=True):
            image = picture[None].astype(np.float32) / 255
            scores.append(float(model(params, image, model.prepare([prompt]))[0]))
    return {
        "difference": float(np.abs(scores - expected).max()),
        "difference_in_8_bits": float(np.abs(scores - in_8_bits).max()),
        "spread": float(expected.std()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reward", choices=sorted(originals.PUBLISHED), required=True)
    reward = parser.parse_args().reward
    for name, value in compare(reward, originals.PUBLISHED[reward]).items():
        print(f"{reward} {name}: {value:.3g}")


if __name__ == "__main__":
    main()
