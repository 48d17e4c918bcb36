import csv
import dataclasses
import math

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image

from configs import common
from diffusionrl_jax.diffusion.sampler import Sampler
from diffusionrl_jax.evaluation import compare
from diffusionrl_jax.evaluation.evaluator import Evaluation, Evaluator, best_score
from diffusionrl_jax.experiments.loading import load_policy


def test_best_score_is_the_weighted_sum():
    means = {"a/b": 0.5, "a/c": 2.0}
    best = ml_collections.ConfigDict({"a/b": 2.0, "a/c": -1.0})
    assert best_score(means, best) == -1.0
    assert math.isnan(best_score(means, ml_collections.ConfigDict()))


def test_means_leave_out_what_is_not_finite():
    scores = {"set": {"a": np.array([1.0, np.nan, 3.0]), "b": np.full(3, np.nan)}}
    means = Evaluation({}, scores).means()
    assert means["set/a"] == 2.0
    assert math.isnan(means["set/b"])


@pytest.fixture(scope="module")
def policy(make_config, compilation_cache):
    return load_policy(make_config())


@pytest.fixture(scope="module")
def evaluator(policy, make_config):
    return Evaluator(policy, make_config())


@pytest.fixture(scope="module")
def result(policy, evaluator):
    return evaluator(policy.params)


def test_evaluation_has_a_score_for_each_image_and_some_to_look_at(result, evaluator):
    assert result.scores["pairs"]["size"].shape == (8,)
    assert result.scores["people"]["size"].shape == (16,)
    assert result.images["people"].shape == (8, 32, 32, 3)
    assert list(evaluator.shown["people"]) == list(range(0, 16, 2))
    assert evaluator.prompts["people"][:4] == evaluator.prompts["people"][:1] * 4
    # Another prompt or another noise is another picture.
    assert len({image.tobytes() for image in result.images["people"]}) == 8


def test_scores_are_of_the_images(result, tmp_path):
    for image, score in zip(result.images["pairs"], result.scores["pairs"]["size"], strict=True):
        path = tmp_path / "image.jpg"
        pixels = Image.fromarray(np.round(image * 255).astype(np.uint8))
        pixels.save(path, quality=95)
        # Rounding at one half may fall the other way.
        assert -score * 1000 == pytest.approx(path.stat().st_size, abs=12)


def test_no_more_is_drawn_at_a_time_than_the_largest_set_has(policy, make_config):
    """All else of a batch would be padding: on a pod most of it."""
    assert Evaluator(policy, make_config(**{"microbatch.sample": 20})).sampler.batch == 16


@pytest.mark.slow
def test_parts_of_a_bounded_size_give_the_same_pictures(policy, result, make_config):
    config = make_config(**{"microbatch.sample": 1})
    config.evaluation.sets.people.images = 24
    parts = Evaluator(policy, config)
    blocks = list(parts._blocks("people"))
    assert [block.stop - block.start for block in blocks] == [8, 8, 8]
    again = parts(policy.params)
    # The first images of a larger set are those of a smaller one.
    np.testing.assert_allclose(
        again.scores["people"]["size"][:16], result.scores["people"]["size"], atol=0.012
    )
    shown = parts.sampler(policy.params, parts.prompts["people"][:3], parts.config.seed + 1)
    np.testing.assert_allclose(shown[::2], result.images["people"][:2], atol=1e-4)


@pytest.mark.slow
def test_decoding_in_chunks_gives_the_same_pictures(policy, make_config, monkeypatch):
    sizes, decode = [], type(policy.model).decode

    def recorded(model, params, latents):
        sizes.append(latents.shape[0])
        return decode(model, params, latents)

    monkeypatch.setattr(type(policy.model), "decode", recorded)
    sampler = make_config().sampler
    draw = lambda chunk: Sampler(policy, sampler, 32, chunk)(policy.params, ["a cat"] * 32, seed=0)
    whole, chunked = draw(0), draw(3)
    # Eight devices have 4 images each, of which 3 do not divide.
    assert sizes == [32, 16]
    np.testing.assert_allclose(chunked, whole, atol=1e-6)


SEEN = {"graph": [], "host": []}


@dataclasses.dataclass(frozen=True)
class GroupMean:
    """A reward of a whole group: its mean. Keeps how many pictures it was compiled for."""

    group_size: int = 1

    @classmethod
    def load(cls, path, **options):
        return cls(**options), {}

    def prepare(self, prompts):
        return {"length": np.float32([len(prompt) for prompt in prompts])}

    def __call__(self, params, images, inputs):
        SEEN["graph"].append(len(images))
        means = images.reshape(-1, self.group_size, *images.shape[1:]).mean((1, 2, 3, 4))
        return jnp.repeat(means, self.group_size) + inputs["length"]


def first_red(images, prompts, metadata):
    SEEN["host"].append(len(images))
    return images[:, 0, 0, 0]


def test_whole_groups_are_scored_a_bounded_number_at_a_time(policy, make_config):
    own = common.make_scorer(f"{__name__}:GroupMean")
    host = common.make_scorer("host_reward", f"{__name__}:first_red")
    pictures = np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), dtype=np.uint8)
    # Of 8 devices with 6 pictures each; 5 do not divide them. A group lies on several devices.
    for at_once, expected in ((0, 48), (5, 24), (2, 16), (1, 8)):
        config = make_config(**{"microbatch.score": at_once})
        config.evaluation.scorers.both = common.make_weighted_sum(own=(own, 1.0), host=(host, 1.0))
        people = config.evaluation.sets.people
        people.images, people.scorers = 48, ("both",)
        evaluator = Evaluator(policy, config)
        SEEN["graph"].clear(), SEEN["host"].clear()
        scores = evaluator.score_pictures({"people": pictures})["people"]["both"]
        assert SEEN["graph"] == [expected]
        assert sum(SEEN["host"]) == 48, "whose calls have a bound of their own"
        assert len(SEEN["host"]) == 1
        means = (pictures / 255).reshape(12, -1).mean(1).repeat(4)
        lengths = [len(prompt) for prompt in evaluator.prompts["people"]]
        np.testing.assert_allclose(scores, means + lengths + pictures[:, 0, 0, 0], rtol=1e-6)


def test_given_pictures_are_scored(evaluator, policy):
    white = np.full((8, 32, 32, 3), 255, np.uint8)
    scores = evaluator.score_pictures({"pairs": white})
    assert list(scores) == ["pairs"]
    assert len(set(scores["pairs"]["size"])) == 1


def test_pictures_that_are_not_finite_have_no_score(evaluator):
    pictures = np.full((8, 32, 32, 3), 0.5, np.float32)
    pictures[3, 0, 0, 0] = np.nan
    scores = evaluator._score("pairs", slice(0, 8), pictures)["size"]
    np.testing.assert_array_equal(np.isnan(scores), np.arange(8) == 3)


@pytest.mark.slow
def test_a_model_against_itself_wins_half(make_config, tiny_model, tmp_path):
    text = compare.compare_models(make_config(), [("same", tiny_model, "")], str(tmp_path))
    assert (tmp_path / "results.md").read_text() == text
    with open(tmp_path / "results.csv", newline="") as file:
        rows = {(row["model"], row["set"], row["measure"]): row for row in csv.DictReader(file)}
    assert float(rows["same", "overall", "win_rate"]["value"]) == 0.5
    base, same = (rows[name, "pairs", "mean"] for name in ("base", "same"))
    assert {**same, "model": "base"} == base
    assert ("real pictures", "people", "mean") in rows
    picture = Image.open(tmp_path / "comparison.png")
    pixels = np.asarray(picture)
    # Two rows of six pictures of 96 pixels; the same in both rows.
    assert picture.width == 110 + 6 * 98 - 2
    np.testing.assert_array_equal(pixels[-96:, 110:], pixels[-96 - 98 : -98, 110:])


@pytest.mark.parametrize(
    ("checkpoints", "changes", "message"),
    [
        ([("base", "x", "")], {}, "must all differ"),
        ([("a", "x", ""), ("a", "y", "")], {}, "must all differ"),
        ([("a", "/no/such/folder", "")], {}, "/no/such/folder is neither the workdir of a run"),
        ([], {"evaluation.sets.pairs.images": 9}, r"sets.pairs.images=9 must be a multiple of 8"),
        ([], {"evaluation.sets.pairs.scorers": ("x",)}, "names the scorer 'x'"),
        ([], {"evaluation.head_to_head": ("x",)}, r"head_to_head names \['x'\]"),
        ([], {"evaluation.best": {"pairs/x": 1.0}}, r"evaluation.best names \['pairs/x'\]"),
    ],
)
def test_bad_input_is_one_clear_error(
    checkpoints, changes, message, make_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(Evaluator, "__call__", lambda *_: pytest.fail("It has drawn."))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        compare.compare_models(make_config(**changes), checkpoints, str(tmp_path))
