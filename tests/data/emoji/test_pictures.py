import collections

import numpy as np
import pytest
from PIL import Image

from diffusionrl_jax import assets
from diffusionrl_jax.data.emoji import pictures, vocabulary


def examples(count, **options):
    return [pictures.random_example(np.random.default_rng((7, n)), **options) for n in range(count)]


@pytest.mark.parametrize("size", [14, 31])
def test_drawing_agrees_with_pillow_compositing(size):
    atlas, corners = pictures._atlas()
    for name in ("apple", "zebra", "judge/dark"):
        left, top = corners[name]
        tile = atlas.crop((left, top, left + 64, top + 64)).resize((size, size), Image.LANCZOS)
        expected = Image.new("RGBA", (32, 32), "white")
        expected.alpha_composite(tile, (1, 0))
        drawn = pictures.draw([(name, size, 1, 0)]).astype(int)
        error = np.abs(drawn - np.asarray(expected.convert("RGB")))
        # Pillow rounds and clips to bytes twice on the way, which shows at sharp edges.
        assert error.mean() < 1
        assert error.max() < 25


def test_outside_the_boxes_pictures_are_white():
    for example in examples(50, kind="pair") + examples(50, kind="single"):
        outside = np.ones((32, 32), bool)
        for left, top, right, bottom in example.boxes:
            assert 0 <= left < right <= 32
            assert 0 <= top < bottom <= 32
            assert example.image[top:bottom, left:right].min() < 200
            outside[top:bottom, left:right] = False
        assert (example.image[outside] == 255).all()


def test_the_objects_of_a_pair_are_apart_and_either_may_be_left():
    sides = set()
    for example in examples(40, kind="pair"):
        first, second = example.boxes
        assert first[2] <= second[0] or second[2] <= first[0]
        sides.add(first[0] < second[0])
        assert example.objects[0] in example.prompt
        assert example.prompt.endswith(example.objects[1])
    assert sides == {True, False}


def test_what_is_beside_nothing_is_in_its_half():
    drawn = [example for example in examples(200, kind="single") if "nothing" in example.prompt]
    sides = set()
    for example in drawn:
        ((left, _, right, _),) = example.boxes
        assert right <= 16 or left >= 16
        sides.add((left < 16, example.prompt.startswith("nothing ")))
    assert len(sides) == 4


def test_pretraining_pictures_keep_what_is_held_out():
    for example in examples(400, kind="pair"):
        assert not set(example.objects) & set(vocabulary.HELD_OUT_OBJECTS)
        assert not vocabulary.is_held_out_pair(*example.objects)


def test_kinds_and_tones_have_their_frequencies():
    drawn = examples(1500)
    kinds = collections.Counter(example.kind for example in drawn)
    for kind, frequency in pictures.KIND_FREQUENCIES.items():
        # Four standard deviations of a binomial.
        assert abs(kinds[kind] / 1500 - frequency) < 4 * (frequency * (1 - frequency) / 1500) ** 0.5
    people = [example.tone for example in drawn if example.kind == "portrait"]
    frequencies = np.bincount(people, minlength=5) / len(people)
    four_deviations = 4 * 0.5 / len(people) ** 0.5
    np.testing.assert_allclose(frequencies, vocabulary.TONE_FREQUENCIES, atol=four_deviations)
    assert {example.tone for example in drawn if example.kind != "portrait"} == {-1}


def test_a_picture_is_a_function_of_the_generators_state():
    for first, again in zip(examples(20), examples(20), strict=True):
        np.testing.assert_array_equal(first.image, again.image)
        assert (first.prompt, first.boxes) == (again.prompt, again.boxes)


def test_atlas_is_shipped_small():
    assert len((assets.resolve("asset:emoji") / "sprites.png").read_bytes()) < 4e6
