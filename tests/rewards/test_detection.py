"""Detection against transformers' OwlViTForObjectDetection and Owlv2ForObjectDetection."""

import json

import jax
import numpy as np
import pytest

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.rewards import detection

OBJECTS = ("dog", "hot dog", "cat", "cake")
MODELS = ("owl_vit", "owlv2")


@pytest.mark.parametrize("name", ["owl_vit", pytest.param("owlv2", marks=pytest.mark.slow)])
def test_scores_match_transformers(name, parity):
    result = parity.compare(name, parity.originals.tiny(name), ((64, 64), (53, 80), (25, 20)))
    assert result["spread"] > 0.05
    assert result["difference"] < 1e-6
    # Pillow rounds to 8 bits; OWLv2's processor does not.
    assert result["difference_in_8_bits"] < {"owl_vit": 1e-3, "owlv2": 1e-6}[name]


def test_a_box_counts_only_for_its_best_object_where_asked(make_original, parity):
    original, folder = make_original("owlv2")
    pictures = parity.make_pictures(((32, 32),) * 8)
    images = np.stack(pictures).astype(np.float32) / 255
    scores = {}
    for exclusive in (True, False):
        reward, params = detection.Detection.load(str(folder), exclusive=exclusive)
        scores[exclusive] = jax.jit(reward)(params, images, reward.prepare(original.prompts))
        original.exclusive = exclusive
        expected = original.score(pictures, original.prompts, eight_bits=False)
        np.testing.assert_allclose(scores[exclusive], expected, atol=1e-6)
    assert (scores[True] <= scores[False]).all()
    assert (scores[True] < scores[False] - 1e-3).any()


def test_the_score_is_differentiable_where_an_object_is_missing(make_original):
    _, folder = make_original("owl_vit")
    reward, params = detection.Detection.load(str(folder))
    images = np.random.default_rng(0).random((2, 32, 32, 3), dtype=np.float32)
    inputs = reward.prepare(["a cake", "a fox next to a cake"])
    gradient = jax.jit(jax.grad(lambda images: reward(params, images, inputs).sum()))(images)
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max((1, 2, 3)) > 0).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query_template": "a photo"}, "query_template 'a photo' lacks {}: write one {} where"),
        ({"query_template": "a {name}"}, "'a {name}' cannot be filled .*: write one {} where"),
        ({"query_template": "{} {}"}, "cannot be filled"),
        ({"query_template": "a {"}, "cannot be filled"),
        ({"query_template": None}, "cannot be filled"),
        ({"objects": "dog"}, "objects='dog' of detection.*must be a list of names, as in"),
        ({"objects": ["dog", 3]}, "must be a list of names"),
        ({"objects": ["dog", " "]}, "must be a list of names"),
        ({"objects": {"dog": 1}}, "must be a list of names"),
    ],
)
def test_templates_and_objects_that_cannot_be(make_original, changes, words):
    _, folder = make_original("owl_vit")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=words) as caught:
        detection.Detection.load(str(folder))
    assert str(file) in str(caught.value)


def test_the_options_objects_are_checked_as_well(make_original):
    _, folder = make_original("owl_vit")
    with pytest.raises(UserError, match="objects='dog' of detection, in its options or"):
        detection.Detection.load(str(folder), objects="dog")


def test_the_longest_name_wins_and_words_are_whole():
    reward = detection.Detection(model=None, objects=OBJECTS)
    assert reward.find_objects("A hot dog beside a cat") == (1, 2)
    assert reward.find_objects("a dog, a dog and a cake") == (0, 3)
    assert reward.find_objects("a dogma") == ()


def test_prompts_without_objects_or_with_too_many_are_refused():
    reward = detection.Detection(model=None, objects=OBJECTS)
    with pytest.raises(ValueError, match="a portrait of a judge"):
        reward.prepare(["a cat", "a portrait of a judge"])
    with pytest.raises(ValueError, match="names 3 objects"):
        reward.prepare(["a cat, a dog and a cake"])
