"""What is kept of an evaluation, whose pictures are seen a block at a time, against SciPy."""

import io
import types

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import distance

from configs import common
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.evaluation import diversity, records
from diffusionrl_jax.evaluation.evaluator import Evaluation
from diffusionrl_jax.evaluation.observation import Observer

PROMPTS = {"pairs": ["a"] * 4 + ["b"] * 4, "people": [f"job {n // 2}" for n in range(600)]}
# Pictures of 16 pixels are compared pixel by pixel.
PICTURES = {
    name: np.random.default_rng(n).random((len(texts), 16, 16, 3), np.float32)
    for n, (name, texts) in enumerate(PROMPTS.items())
}


class Blocks:
    """An evaluator that has drawn its pictures already, and shows so many of them at a time."""

    policy = types.SimpleNamespace(mesh=make_mesh())
    config = common.get_config().evaluation
    for name in PROMPTS:
        config.sets[name] = common.make_evaluation_set("emoji:pairs", 8, ())
    prompts, shown = PROMPTS, {"pairs": np.array([0, 5]), "people": np.array([1, 599])}

    def __init__(self, size):
        self.size = size

    def open_scorers(self):
        return iter(())

    def __call__(self, params, look):
        for name, images in PICTURES.items():
            for start in range(0, len(images), self.size):
                block = slice(start, min(start + self.size, len(images)))
                look(name, block, images[block])
        means = {name: {"red": images[..., 0].mean((1, 2))} for name, images in PICTURES.items()}
        return Evaluation({}, {} if params is None else means)


@pytest.mark.parametrize("size", [4, 600])
def test_distances_and_pictures_are_those_of_whole_sets(size):
    observe = Observer(Blocks(size), probe=lambda params: {"kl_to_base": params["level"]})
    assert observe.compared_by == diversity.PIXELS
    evaluation, record, probed = observe({"level": 3.0}, 12)
    assert (record.step, record.prompts, probed) == (12, PROMPTS, {"kl_to_base": 3.0})
    assert record.scores is evaluation.scores
    assert record.settings == records.settings_of(Blocks.config, diversity.PIXELS)
    assert record.settings.keys() == set(PROMPTS)
    for name, images in PICTURES.items():
        texts = np.array(PROMPTS[name])
        assert record.distances[name].keys() == set(PROMPTS[name])
        for prompt, found in record.distances[name].items():
            vectors = images[texts == prompt].reshape(-1, 16 * 16 * 3).astype(np.float64)
            expected = distance.pdist(vectors).mean() / np.sqrt(16 * 16 * 3)
            assert found == pytest.approx(expected, rel=1e-5)
        # All pictures of a small set; of a large one those that are shown, and some others.
        kept = record.pictures[name]
        assert set(Blocks.shown[name]) <= kept.keys()
        assert len(kept) == 8 if name == "pairs" else 256 <= len(kept) <= 258
        for index, file in kept.items():
            pixels = np.asarray(Image.open(io.BytesIO(file)))
            np.testing.assert_allclose(pixels, 255 * images[index], atol=0.51)
    assert records.MOST_PICTURES == 256


def test_without_a_probe_it_says_nothing():
    assert Observer(Blocks(8), probe=None)({}, 0)[2] == {}


def test_a_tasks_image_tower_compares_the_pictures():
    """Where no scorer of a set has one: here it sees the mean colour alone."""
    embed = lambda params, images: params["scale"] * images.mean((1, 2))
    tower = types.SimpleNamespace(reward=types.SimpleNamespace(embed=embed))
    tower.params = {"scale": np.float32(2)}
    observe = Observer(Blocks(8), None, [tower], per_device=1)
    assert observe.compared_by == diversity.CLIP
    found = observe({}, 0)[1].distances["pairs"]["b"]
    means = 2 * PICTURES["pairs"][4:].mean((1, 2), dtype=np.float64)
    assert found == pytest.approx(distance.pdist(means).mean(), rel=1e-4)
