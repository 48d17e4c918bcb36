"""Raters over real HTTP: at once, twice, in bad faith, and with the server killed."""

import concurrent.futures
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time

import pytest
from PIL import Image

from diffusionrl_jax.reporting.study import votes
from diffusionrl_jax.reporting.study.questions import CHOICES
from tests.processes import ROOT
from tests.reporting.study.conftest import PAIRS, REDS, State


def request(port, method, path, body=None, **headers):
    """Status, headers and content."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as client:
        client.request(method, path, body, headers)
        response = client.getresponse()
        return response.status, response.headers, response.read()


def cast(port, rater, number, choice):
    """Status, and the choice that the server confirms."""
    body = json.dumps({"choice": choice})
    status, _, content = request(port, "POST", f"/{rater.token}/{number}", body)
    return status, json.loads(content)["choice"] if status in (200, 409) else None


def state_of(port, rater):
    status, _, page = request(port, "GET", f"/{rater.token}/")
    assert status == 200
    return json.loads(State(page.decode()).text)


def in_database(folder):
    """Rater and question -> choice, by SQLite alone."""
    with contextlib.closing(sqlite3.connect(folder / votes.FILE)) as connection:
        rows = connection.execute("SELECT rater, question, choice FROM votes").fetchall()
    assert len({row[:2] for row in rows}) == len(rows)
    return {row[:2]: row[2] for row in rows}


def test_the_page_and_its_pictures_tell_nothing_of_the_models(server, study, folder, raters):
    port = server.server_port
    status, headers, page = request(port, "GET", f"/{raters[0].token}/")
    assert status == 200 and headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    for told in (study.a, study.b, "scrambled", "earlier", "later", "png"):
        assert told not in page.decode()
    assert not re.search(r"(src|href)=.?(https?:)?//", page.decode()), "nothing from elsewhere"
    asked = state_of(port, raters[0])["questions"]
    questions = votes.read_questions(folder, raters[0])
    assert [one["prompt"] for one in asked] == [study.pairs[q.pair].prompt for q in questions]
    for number, (one, question) in enumerate(zip(asked, questions, strict=True)):
        for side in ("left", "right"):
            assert one[side] == f"{number}/{side}"
            status, headers, content = request(port, "GET", f"/{raters[0].token}/{one[side]}")
            assert status == 200 and headers["Content-Type"] == "image/png"
            red, pair, _ = Image.open(io.BytesIO(content)).getpixel((0, 0))
            assert (red, pair) == (REDS[getattr(question, side)], question.pair)


def test_a_link_without_its_last_slash_goes_on_to_the_page(server, raters):
    status, headers, _ = request(server.server_port, "GET", f"/{raters[0].token}")
    assert (status, headers["Location"]) == (301, f"{raters[0].token}/")


def test_two_raters_at_once_of_whom_one_stops_in_the_middle(server, folder, raters):
    port, count = server.server_port, PAIRS + 2

    def answer(rater, answered):
        for number in range(answered):
            choice = CHOICES[(number + rater.number) % 3]
            assert cast(port, rater, number, choice) == (200, choice)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(answer, raters[:2], (count, 5)))
    assert in_database(folder) == {
        (rater.number, number): CHOICES[(number + rater.number) % 3]
        for rater, answered in zip(raters, (count, 5), strict=False)
        for number in range(answered)
    }
    # The page, loaded again, goes on where it was.
    assert len(state_of(port, raters[0])["answers"]) == count
    assert state_of(port, raters[1])["answers"] == {str(n): CHOICES[(n + 2) % 3] for n in range(5)}
    assert state_of(port, raters[2])["answers"] == {}


def test_the_first_of_several_answers_counts(server, folder, raters):
    port, rater = server.server_port, raters[0]
    assert cast(port, rater, 3, "left") == (200, "left")
    assert cast(port, rater, 3, "left") == (200, "left")
    assert cast(port, rater, 3, "right") == (409, "left")
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda n: cast(port, rater, 4, CHOICES[n % 3]), range(24)))
    first = in_database(folder)[rater.number, 4]
    assert {confirmed for _, confirmed in answers} == {first}
    for number, (status, _) in enumerate(answers):
        assert status == (200 if CHOICES[number % 3] == first else 409)
    assert set(in_database(folder)) == {(rater.number, 3), (rater.number, 4)}


def raw(port, path):
    """The whole answer to a request line of any bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET " + path + b" HTTP/1.0\r\n\r\n")
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "path",
    """/ /study.json /votes.sqlite /a/00000.png /etc/passwd //etc/passwd file:///etc/passwd
    /../study.json /TOKEN/../study.json /TOKEN/../../study/study.json /TOKEN/%2e%2e/study.json
    /TOKEN/..%2fstudy.json /TOKEN/..\\study.json /TOKEN/study.json /TOKEN/0/../../votes.sqlite
    /TOKEN/0/left/../../../study.json /TOKEN/0/a /TOKEN/0/scrambled /TOKEN/0/left.png
    /TOKEN/0/left%00 /TOKEN/0/left? /TOKEN/-1/left /TOKEN/14/left /TOKEN/999999/left
    /TOKEN/1e1/left /TOKEN/\u0663/left /TOKEN/0000000000000000000001/left /TOKENx/ /TOKEN//
    /TOKEN0/left /TOKEN/0/left/ /' /%27OR%271%27=%271/ /%""".split(),
)
def test_no_address_reaches_the_disk(server, raters, path):
    answer = raw(server.server_port, path.replace("TOKEN", raters[0].token).encode())
    status = int(answer.split(None, 2)[1])
    assert status == 404 if b"/0/" not in answer else status in (404, 405)
    for secret in (b"of-the-tests", b"SQLite", b"root:", b"\x89PNG", raters[1].token.encode()):
        assert secret not in answer


def test_who_has_no_link_of_the_server_is_turned_away(server, folder, study, raters):
    (exported,) = votes.add_raters(folder, study, votes.EXPORTED, 1)
    for token in ("A" * 22, raters[0].token[:-1], raters[0].token.swapcase(), exported.token):
        for path in (f"/{token}/", f"/{token}/0/left", f"/{token}"):
            assert request(server.server_port, "GET", path)[0] == 404
        assert request(server.server_port, "POST", f"/{token}/0", '{"choice": "left"}')[0] == 404
    assert in_database(folder) == {}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", 400),
        ("left", 400),
        ("[]", 400),
        ('"left"', 400),
        ('{"choice": "a"}', 400),
        ('{"choice": ["left"]}', 400),
        ('{"choice": null}', 400),
        ('{"choices": "left"}', 400),
        (b"\xff\xfe", 400),
        ("[" * 1000, 400),
        ('{"choice": "left"}' + " " * 2000, 413),
    ],
)
def test_what_is_no_vote_is_not_counted(server, folder, raters, body, status):
    path = f"/{raters[0].token}/0"
    assert request(server.server_port, "POST", path, body)[0] == status
    assert in_database(folder) == {}


def test_votes_that_go_nowhere(server, folder, raters):
    port, token, body = server.server_port, raters[0].token, '{"choice": "left"}'
    assert request(port, "POST", f"/{token}/14", body)[0] == 404
    assert request(port, "POST", f"/{token}/", body)[0] == 405
    assert request(port, "POST", f"/{token}/0/left", body)[0] == 405
    assert request(port, "GET", f"/{token}/0")[0] == 405
    for method in ("PUT", "DELETE", "HEAD"):
        assert request(port, method, f"/{token}/0")[0] == 501
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(f"POST /{token}/0 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b" 411 " in connection.recv(100)
    assert in_database(folder) == {}


def test_a_vote_that_cannot_be_written_is_not_confirmed(server, folder, raters, monkeypatch):
    monkeypatch.setattr(votes, "WAIT", 0.1)
    with contextlib.closing(sqlite3.connect(folder / votes.FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert cast(server.server_port, raters[0], 0, "left") == (503, None)
        other.execute("ROLLBACK")
    assert in_database(folder) == {}
    assert cast(server.server_port, raters[0], 0, "right") == (200, "right")


def test_a_picture_that_is_gone_is_one_error(server, folder, raters):
    question = votes.read_questions(folder, raters[0])[0]
    (folder / question.left / f"{question.pair:05}.png").unlink()
    assert request(server.server_port, "GET", f"/{raters[0].token}/0/left")[0] == 503
    assert request(server.server_port, "GET", f"/{raters[0].token}/0/right")[0] == 200


SERVE = """
import sys
from etils import epath
from diffusionrl_jax.reporting.study import records, server
folder = epath.Path(sys.argv[1])
with server.StudyServer(("127.0.0.1", 0), folder, records.read_study(folder)) as server:
    print(server.server_port, flush=True)
    server.serve_forever()
"""


@contextlib.contextmanager
def serving(folder):
    """A process that serves, and its port."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(folder)], env=environment, stdout=subprocess.PIPE
    )
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def test_a_server_that_is_killed_loses_no_confirmed_vote(folder, study):
    raters = votes.add_raters(folder, study, votes.SERVED, 40)
    confirmed = {}

    def answer(rater):
        for number in range(PAIRS + 2):
            try:
                status, choice = cast(port, rater, number, CHOICES[number % 3])
            except (OSError, http.client.HTTPException):
                return
            assert status == 200
            confirmed[rater.number, number] = choice

    with serving(folder) as (process, port):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(answer, rater) for rater in raters]
            while len(confirmed) < 60 and process.poll() is None:
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
        for one in answers:
            one.result()
    assert 60 <= len(confirmed) < 40 * (PAIRS + 2), "it was killed in the middle"
    # A vote may be there that was not confirmed any more, and none is lost or another.
    assert confirmed.items() <= in_database(folder).items()
    with serving(folder) as (_, port):
        for rater in raters[:2]:
            kept = {str(n): choice for (who, n), choice in confirmed.items() if who == rater.number}
            answers = state_of(port, rater)["answers"]
            assert kept.items() <= answers.items()
            for number, choice in kept.items():
                assert cast(port, rater, number, "tie") == (200 if choice == "tie" else 409, choice)
