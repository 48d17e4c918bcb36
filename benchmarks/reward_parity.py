"""The largest difference between a reward's scores and its PyTorch original's, at published size.

    python benchmarks/reward_parity.py --reward=clip_score

Random weights; eight pictures of eight sizes; one framework after the other. See
docs/reward_models.md. pick_score and hps_v2 take 10 GB of memory, image_reward 6, others 4 at most.
"""

import argparse
import gc
import tempfile
from pathlib import Path

import numpy as np
import originals
from originals.common import SIZES, make_pictures


def compare(name: str, config: dict | None = None, sizes=SIZES) -> dict[str, float]:
    """Scores pictures with both.

    Of statistical parity the classes' probabilities are compared: the score only counts which is
    the largest.

    Args:
      name: in `originals.ORIGINALS`.
      config: of another size than the published one.
      sizes: of the pictures, at most eight.

    Returns:
      "difference" and "difference_in_8_bits", the largest of each with the original that
      preprocesses in floating point and with the published preprocessing; "spread", the standard
      deviation of the original's scores.

    Raises:
      ValueError: the original gives all pictures the same score, so that nothing is compared.
    """
    pictures = make_pictures(sizes)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        original = originals.make(name, folder, config)
        original.write(folder)
        reward, prompts = original.reward, original.prompts[: len(sizes)]
        if reward == "statistical_parity":
            expected, in_8_bits = (original.classify(pictures, bits) for bits in (False, True))
        else:
            # One at a time, which takes less memory.
            expected, in_8_bits = (
                np.concatenate(
                    [
                        original.score([picture], [prompt], bits)
                        for picture, prompt in zip(pictures, prompts, strict=True)
                    ]
                )
                for bits in (False, True)
            )
        del original
        gc.collect()
        from diffusionrl_jax.rewards import REWARDS

        model, params = REWARDS[reward].load(str(folder))
        scores = []
        # Not jitted: every picture has another size, and the towers would compile for each.
        for picture, prompt in zip(pictures, prompts, strict=True):
            image = picture[None].astype(np.float32) / 255
            if reward == "statistical_parity":
                scores.append(np.asarray(model.classify(params, image)[0]))
            else:
                scores.append(float(model(params, image, model.prepare([prompt]))[0]))
    if not expected.std():
        raise ValueError(f"{name} gives all pictures the score {expected.flat[0]}.")
    return {
        "difference": float(np.abs(scores - expected).max()),
        "difference_in_8_bits": float(np.abs(scores - in_8_bits).max()),
        "spread": float(expected.std()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reward", choices=sorted(originals.ORIGINALS), required=True)
    name = parser.parse_args().reward
    for measure, value in compare(name).items():
        print(f"{name} {measure}: {value:.3g}")


if __name__ == "__main__":
    main()
