"""A study whose pictures tell which model has drawn them, and a server of it."""

import threading

import numpy as np
import pytest
from etils import epath
from PIL import Image

from diffusionrl_jax.reporting.study import records, votes
from diffusionrl_jax.reporting.study.records import SCRAMBLED, A, B, Pair, Study
from diffusionrl_jax.reporting.study.server import StudyServer

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
