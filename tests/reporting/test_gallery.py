"""Which pictures a report shows."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from diffusionrl_jax.reporting import gallery, report
from tests.reporting.runs import EVIL

DETAIL = report.DETAILS[0]


def test_ends_are_the_lowest_and_the_highest(run):
    record = run.evaluations[-1]
    scores = record.scores["new_pairs"]["preference"]
    found = dict(gallery.ends(record, "new_pairs", "preference", DETAIL))
    number = lambda picture: float(picture.caption.partition(":")[0])
    assert number(found["worst"][0]) == pytest.approx(scores.min(), abs=5e-3)
    assert number(found["best"][0]) == pytest.approx(scores.max(), abs=5e-3)
    assert abs(number(found["median"][0]) - np.median(scores)) < np.ptp(scores) / 8
    prompts = [picture.caption.partition(": ")[2] for picture in found["best"]]
    assert len(set(prompts)) == len(prompts), "each is of another prompt"


def test_prompts_that_gained_most_come_first(run):
    gained, lost = gallery.changes(run, "new_pairs", "preference", DETAIL)
    assert gained[0].prompt == EVIL, "the last ones gain most"
    gains = [change.after - change.before for change in gained]
    assert gains == sorted(gains, reverse=True) and not lost
    assert [picture.step for picture in gained[0].pictures] == [0, 8]


def test_pictures_through_training_are_in_order(run):
    ((prompt, pictures), *others) = gallery.through_training(run, DETAIL)["new_pairs"]
    assert prompt == "a fox and 0 cakes" and len(others) == 7
    assert [picture.step for picture in pictures] == [0, 4, 8]
    reds = [
        Image.open(io.BytesIO(base64.b64decode(one.source.partition(",")[2]))).getpixel((0, 0))[0]
        for one in pictures
    ]
    assert reds == [0, 4, 8]
