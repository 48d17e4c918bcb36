"""The judge of boxes on pictures whose answer is known by how they were made."""

import jax
import matplotlib.colors
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter
from transformers.loss.loss_for_object_detection import box_iou

from diffusionrl_jax.data.object_requests import COLOURS, RELATIONS, Request, Thing
from diffusionrl_jax.rewards.object_verdict import (
    encode_requests,
    intersection_over_union,
    judge,
    keep_objects,
    relations,
)

SIZE, BOXES = (96, 128), 8
HOW = ("", "bright ", "strong ", "true ", "medium ")


def paint(generator, colour):
    """A colour that people call so, in the light or the shade: uint8 RGB."""
    known = matplotlib.colors.XKCD_COLORS
    names = [f"xkcd:{how}{colour}" for how in HOW if f"xkcd:{how}{colour}" in known]
    rgb = np.array(matplotlib.colors.to_rgb(known[generator.choice(names)]))
    return tuple(int(c) for c in np.clip(255 * rgb * generator.uniform(0.9, 1.05), 0, 255))


def place(generator, taken):
    """A box that touches none of those that are taken, in pixels."""
    height, width = SIZE
    while True:
        w, h = generator.integers(18, 34, 2)
        left, top = generator.integers(0, width - w), generator.integers(0, height - h)
        box = np.array([left, top, left + w, top + h], np.float32)
        if all((box[:2] > other[2:]).any() or (other[:2] > box[2:]).any() for other in taken):
            return box


def scene(generator, things):
    """A picture of ellipses with noise and soft edges: uint8, and the box of each."""
    height, width = SIZE
    grey = int(generator.integers(90, 170))
    picture = Image.new("RGB", (width, height), (grey, grey, grey))
    draw, boxes = ImageDraw.Draw(picture), []
    for _, colour in things:
        boxes.append(place(generator, boxes))
        draw.ellipse([float(side) for side in boxes[-1]], fill=paint(generator, colour))
    blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(1)), np.float32)
    noisy = np.clip(blurred + generator.normal(0, 8, blurred.shape), 0, 255)
    return noisy.astype(np.uint8), np.array(boxes)


def detected(generator, things, boxes, nouns):
    """What a detector says: boxes that are a little off, twice each, and false ones that it doubts.

    Shares of the picture, [2, BOXES, 4], with falling confidences, [2, BOXES].
    """
    height, width = SIZE
    found, certain = np.zeros((2, BOXES, 4), np.float32), np.zeros((2, BOXES), np.float32)
    for row, noun in enumerate(nouns):
        mine = [box for box, (name, _) in zip(boxes, things, strict=True) if name == noun]
        said = [(box + generator.normal(0, 1, 4), generator.uniform(0.4, 0.9)) for box in mine]
        said += [(box + generator.normal(0, 1, 4), generator.uniform(0.25, 0.4)) for box in mine]
        said += [(place(generator, []), 0.1)]
        said.sort(key=lambda pair: -pair[1])
        for column, (box, confidence) in enumerate(said[:BOXES]):
            found[row, column] = box / [width, height, width, height]
            certain[row, column] = confidence
    return found, certain


def answer(request, things, boxes):
    """Whether what was drawn is what is asked for, from what was drawn."""

    def those(thing):
        drawn = zip(things, boxes, strict=True)
        return [b for (n, c), b in drawn if n == thing.noun and thing.colour in ("", c)]

    for thing in request.things:
        count = len(those(thing))
        if count == 0 or (thing.count > 1 and count != thing.count):
            return False
    if not request.relation:
        return True
    (first,), (second,) = map(those, request.things)
    x, y = (first[:2] + first[2:] - second[:2] - second[2:]) / 2
    truth = {"left of": x < 0, "right of": x > 0, "above": y < 0, "below": y > 0}
    along = abs(x) if request.relation in ("left of", "right of") else abs(y)
    # Neither clearly so nor clearly not so: no answer is known.
    return (
        None if along < 0.75 * max(abs(x), abs(y)) or along < 8 else bool(truth[request.relation])
    )


def ask(generator, task):
    """A request of a task and what is drawn, which is what was asked for about half of the time."""
    colours = generator.choice(COLOURS, 3, replace=False).tolist()
    one, two, three = colours
    right = generator.random() < 0.5
    if task == "single object":
        return Request((Thing("cat"),)), [("cat" if right else "dog", one)]
    if task == "two objects":
        return Request((Thing("cat"), Thing("dog"))), [
            ("cat", one),
            ("dog" if right else "cat", two),
        ]
    if task == "counting":
        count = int(generator.integers(2, 5))
        drawn = count if right else int(generator.choice([n for n in range(1, 5) if n != count]))
        return Request((Thing("cat", count=count),)), [("cat", one)] * drawn
    if task == "colours":
        return Request((Thing("cat", one),)), [("cat", one if right else two)]
    if task == "position":
        request = Request((Thing("cat"), Thing("dog")), str(generator.choice(RELATIONS)))
        return request, [("cat", one), ("dog", two)]
    request = Request((Thing("cat", one), Thing("dog", two)))
    swapped = [("cat", two), ("dog", one if generator.random() < 0.5 else three)]
    return request, [("cat", one), ("dog", two)] if right else swapped


@pytest.mark.parametrize(
    "task",
    ["single object", "two objects", "counting", "colours", "position", "attribute binding"],
)
def test_it_agrees_with_what_was_drawn(task):
    generator = np.random.default_rng(0)
    requests, images, boxes, certain, truth = [], [], [], [], []
    while len(truth) < 100:
        request, things = ask(generator, task)
        image, drawn = scene(generator, things)
        expected = answer(request, things, drawn)
        if expected is None:
            continue
        found = detected(generator, things, drawn, ("cat", "dog"))
        for kept, value in zip(
            (requests, images, boxes, certain, truth),
            (request, image, *found, expected),
            strict=True,
        ):
            kept.append(value)
    images = np.stack(images).astype(np.float32) / 255
    inputs = encode_requests(requests)
    judged = jax.jit(judge)(images, np.stack(boxes), np.stack(certain), inputs, 0.2)
    truth = np.array(truth, np.float32)
    assert 0.25 < truth.mean() < 0.75
    agreement = (np.asarray(judged) == truth).mean()
    print(f"{task}: {agreement:.2f}")
    assert agreement >= 0.95


def test_overlaps_match_transformers():
    generator = np.random.default_rng(0)
    corners = np.sort(generator.random((2, 9, 2, 2)), axis=2).astype(np.float32)
    first, second = corners.reshape(2, 9, 4)
    expected = box_iou(torch.tensor(first), torch.tensor(second))[0]
    np.testing.assert_allclose(intersection_over_union(first, second), expected, atol=1e-6)


def test_one_object_is_one_box():
    near = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [2, 0, 12, 10], [20, 0, 30, 10]], np.float32)
    certain = np.array([0.9, 0.8, 0.7, 0.1], np.float32)
    np.testing.assert_array_equal(keep_objects(near, certain, 0.2), [True, False, False, False])
    np.testing.assert_array_equal(keep_objects(near, certain, 0.05), [True, False, False, True])
    # The third shares half with the first of those that are kept only if the second is.
    chain = np.array([[0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]], np.float32)
    np.testing.assert_array_equal(keep_objects(chain, certain[:3], 0.2), [True, False, True])


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((40, 10, 50, 20), "left of"),
        ((10, 40, 20, 50), "above"),
        ((11, 10, 21, 20), ""),  # No further than the margin.
        ((40, 40, 50, 50), "left of, above"),
        ((40, 30, 50, 40), "left of, above"),
        ((40, 20, 50, 30), "left of"),
    ],
)
def test_places(second, expected):
    first = np.array([[10, 10, 20, 20]], np.float32)
    second = np.array([second], np.float32)
    holds = np.asarray(relations(first, second))[0, 0]
    assert [r for r, held in zip(RELATIONS, holds, strict=True) if held] == [
        name for name in expected.split(", ") if name
    ]
    opposite = np.asarray(relations(second, first))[0, 0]
    np.testing.assert_array_equal(opposite, holds[[1, 0, 3, 2]])
