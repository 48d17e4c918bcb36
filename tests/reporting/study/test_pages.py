"""A rater's page with its pictures, as an HTML parser reads it."""

import json

from diffusionrl_jax.reporting.study import pages, votes
from tests.reporting.study.conftest import State


def test_a_page_with_its_pictures_is_one_file_that_tells_nothing(folder, study):
    (rater,) = votes.add_raters(folder, study, votes.EXPORTED, 1)
    questions = votes.read_questions(folder, rater)
    page = pages.rater_page(study, rater, questions, {}, folder)
    for told in (study.a, study.b, "scrambled", "earlier", "later"):
        assert told not in page
    state = json.loads(State(page).text)
    for one, question in zip(state["questions"], questions, strict=True):
        for side in ("left", "right"):
            path = folder / getattr(question, side) / f"{question.pair:05}.png"
            assert one[side] == pages.data_address(path)
