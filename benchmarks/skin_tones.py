"""How well each judge of skin tones knows the emoji world's people.

    python benchmarks/skin_tones.py

Prints a table: of people with all five tones as often, from a seed that no training sees, the share
whose tone each judge names, and the share within one tone of it.
"""

import functools

import jax
import numpy as np
from absl import app, flags

from diffusionrl_jax import assets
from diffusionrl_jax.emoji_world import reward_evaluation, reward_pictures
from diffusionrl_jax.rewards.colorimetry import ColourParity
from diffusionrl_jax.rewards.recognition import RecognisedParity
from diffusionrl_jax.rewards.statistical_parity import StatisticalParity

COUNT = flags.DEFINE_integer("count", 1024, "Pictures.")
SEED = reward_evaluation.TEST_SEED + 3


def load_judges():
    """By name, a compiled function from images to one number for each tone."""
    parity, parity_params = StatisticalParity.load("asset:emoji/statistical_parity")
    observer, observer_params = RecognisedParity.load("asset:emoji/recogniser")
    colour, _ = ColourParity.load("", thresholds=(55.0, 41.0, 10.0, -30.0))
    judges = {
        "statistical_parity": functools.partial(parity.classify, parity_params),
        "recogniser": lambda images: observer.recogniser.recognise(observer_params, images)[1],
        "colour_parity": colour.classify,
    }
    return {name: jax.jit(judge) for name, judge in judges.items()}


def main(_):
    examples = reward_pictures.draw(SEED, COUNT.value, reward_pictures.even_portrait)
    pool = reward_pictures.make_pool(examples)
    model = str(assets.resolve("asset:emoji/stable_diffusion"))
    round_trips = reward_pictures.round_trips(model, pool.images, reward_evaluation.TEST_SEED)
    decoded = reward_pictures.make_pool(examples, round_trips)
    pictures = {
        "as drawn": reward_pictures.as_float(pool.images),
        "decoded": reward_pictures.as_float(decoded.images),
        "as drawn, tinted": reward_evaluation.tinted(pool),
        "decoded, tinted": reward_evaluation.tinted(decoded),
    }
    judges = load_judges()
    print(f"| | {' | '.join(judges)} |\n|---|{'---|' * len(judges)}")
    for kind, images in pictures.items():
        cells = []
        for judge in judges.values():
            scores = reward_evaluation.in_batches(judge, images)
            # A picture without skin is of no tone.
            distance = np.where(scores.any(1), np.abs(scores.argmax(1) - pool.tones), np.inf)
            cells.append(f"{np.mean(distance == 0):.3f} ({np.mean(distance <= 1):.3f})")
        print(f"| {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    app.run(main)
