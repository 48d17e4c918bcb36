"""A study whose pictures tell which model has drawn them, and a server of it."""

import threading
from html.parser import HTMLParser

import numpy as np
import pytest
from etils import epath
from PIL import Image

from diffusionrl_jax.reporting.study import records, votes
from diffusionrl_jax.reporting.study.questions import LEFT, RIGHT, TIE, ask
from diffusionrl_jax.reporting.study.records import SCRAMBLED, A, B, Pair, Study
from diffusionrl_jax.reporting.study.server import StudyServer
from diffusionrl_jax.reporting.study.votes import SERVED, Rater, Vote

PAIRS, CHECKS = 12, (1, 7)
KINDS = ("Animals", "Arts & <b>Crafts</b>", "Produce")
# The first channel says which model it was, the second which pair.
REDS = {A: 10, B: 200, SCRAMBLED: 100}


def make_study():
    """Scorer "likes_b" prefers b in the first nine pairs, and "ties" nothing."""
    scores = lambda number: {"likes_b": (0.0, 1.0 if number < 9 else -1.0), "ties": (0.5, 0.5)}
    return Study(
        identity="of-the-tests",
        a="models/earlier",
        b="runs/later@best",
        prompts="prompts.tsv?field=Prompt",
        question="Which is better?",
        seed=3,
        sampler={"steps": 4},
        pairs=tuple(
            Pair(f"prompt </script> {number}", {"Category": KINDS[number % 3]}, scores(number))
            for number in range(PAIRS)
        ),
        checks=CHECKS,
    )


@pytest.fixture
def folder(tmp_path):
    """A study's folder, with an empty database."""
    study, path = make_study(), epath.Path(tmp_path) / "study"
    for name, red in REDS.items():
        (path / name).mkdir(parents=True)
        for pair in range(PAIRS) if name != SCRAMBLED else CHECKS:
            image = np.full((6, 8, 3), (red, pair, 0), np.uint8)
            Image.fromarray(image).save(records.picture_path(path, name, pair))
    records.write_study(path, study)
    votes.prepare(path, study)
    return path


@pytest.fixture
def study(folder):
    return records.read_study(folder)


@pytest.fixture
def raters(folder, study):
    return votes.add_raters(folder, study, votes.SERVED, 3)


@pytest.fixture
def server(folder, study, raters):
    """It listens at server.server_port."""
    with StudyServer(("127.0.0.1", 0), folder, study) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def choose(rater, number, question, wanted):
    """The vote for the picture that is wanted, on whichever side it is."""
    choice = {question.left: LEFT, question.right: RIGHT, TIE: TIE}[wanted]
    return Vote(rater, number, question, choice)


def raters_of(votes):
    numbers = sorted({vote.rater for vote in votes})
    return [Rater(number, f"token {number}", SERVED) for number in numbers]


@pytest.fixture
def inattentive():
    """Votes of four: the second prefers scrambled pictures, the third calls them equal."""
    study, found = make_study(), []
    for rater in range(1, 5):
        for number, question in enumerate(ask(study, rater - 1)):
            wanted = A if rater == 2 else B
            if question.is_check:
                sides = {question.left, question.right}
                wanted = (
                    SCRAMBLED if rater == 2 else TIE if rater == 3 else min(sides - {SCRAMBLED})
                )
            if rater < 4 or not question.is_check:
                found.append(choose(rater, number, question, wanted))
    return found


class State(HTMLParser):
    """The JSON in a page."""

    def __init__(self, page):
        super().__init__()
        self.text, self._inside = "", False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self._inside = tag == "script" and ("id", "state") in attributes

    def handle_data(self, data):
        self.text += data if self._inside else ""


def write_table(folder):
    """A file of prompts with categories, and its name as a source."""
    path = folder / "parti.tsv"
    rows = ["Prompt\tCategory", "a cat\tAnimals", 'an apple\t"Food, fruit"', "a dog\tAnimals"]
    path.write_text("\n".join(rows) + "\n")
    return f"{path}?field=Prompt"
