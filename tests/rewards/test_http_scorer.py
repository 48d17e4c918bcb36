"""Servers that score, and everything that they may answer."""

import contextlib
import gzip
import http.server
import importlib.util
import io
import itertools
import pathlib
import socket
import threading
import time
import zlib

import msgpack
import numpy as np
import pytest
from PIL import Image

from configs import common
from diffusionrl_jax.experiments import experiment
from diffusionrl_jax.rewards import http_scorer, scorers
from diffusionrl_jax.rewards.host_reward import HostReward, ScorerError
from tests.rewards.test_host_reward import EXPECTED, IMAGES, QUESTIONS, brightness, load

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "scorer.py"


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch):
    monkeypatch.setattr(http_scorer, "BACKOFF", 0.01)
    monkeypatch.setattr(http_scorer, "JITTER", 0.01)


@pytest.fixture
def serve():
    """A function that starts a server in a thread: its address."""
    servers = []

    def start(server):
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://localhost:{server.server_port}/score"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def serve_answers(serve):
    """A function that serves (status, body or seconds of silence) one after another."""

    def start(*answers):
        requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = answers[min(len(requests), len(answers) - 1)]
                requests.append(msgpack.unpackb(body))
                if not isinstance(answer, bytes):
                    time.sleep(answer)
                    return
                self.send_response(status)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *arguments):
                pass

        return serve(http.server.ThreadingHTTPServer(("", 0), Handler)), requests

    return start


def some(images, prompts, metadata):
    return [None, 2, float("nan"), 4.5, 5]


def scores(*values):
    return 200, msgpack.packb({"scores": list(values)})


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("scorer", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("image_format", ["png", "raw"])
def test_the_example_server(serve, example, image_format):
    url = serve(example.make_server(brightness, 0))
    reward = load(url, images_per_call=2, image_format=image_format)
    assert load(url).images_per_call == 16
    np.testing.assert_array_equal(reward.score(IMAGES, QUESTIONS), EXPECTED)


def test_a_request_is_as_documented(serve_answers):
    url, requests = serve_answers(scores(1, 2, 3, 4, 5))
    HostReward(url).score(IMAGES, QUESTIONS)
    (request,) = requests
    pictures = [np.asarray(Image.open(io.BytesIO(image))) for image in request.pop("images")]
    np.testing.assert_array_equal(pictures, IMAGES)
    assert request == {
        "format": "png",
        "shape": [5, 6, 4, 3],
        "prompts": QUESTIONS.prompts,
        "metadata": QUESTIONS.metadata,
    }


@pytest.mark.parametrize(("parallel", "expected"), [(True, 3), (False, 1)])
def test_requests_run_side_by_side_and_functions_if_asked(serve, example, parallel, expected):
    most, now, lock = 0, 0, threading.Lock()

    def function(images, prompts, metadata):
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.2)
        with lock:
            now -= 1
        return [0.0] * len(images)

    url = serve(example.make_server(function, 0, parallel))
    HostReward(url, images_per_call=1, concurrent_requests=3).score(IMAGES, QUESTIONS)
    assert most == expected


def test_a_server_that_fails_twice_is_asked_again(serve_answers):
    url, requests = serve_answers((503, b"busy"), (500, b"restarting"), scores(1, 2, 3, 4, 5))
    np.testing.assert_array_equal(HostReward(url).score(IMAGES, QUESTIONS), [1, 2, 3, 4, 5])
    assert len(requests) == 3


def test_a_server_that_hangs_once_is_asked_again(serve_answers):
    url, requests = serve_answers((200, 2.0), scores(1, 2, 3, 4, 5))
    reward = HostReward(url, timeout=0.3)
    np.testing.assert_array_equal(reward.score(IMAGES, QUESTIONS), [1, 2, 3, 4, 5])
    assert len(requests) == 2


def test_scores_that_lack_are_nan(serve_answers):
    url, _ = serve_answers(scores(1, None, 3, 4, 5))
    np.testing.assert_array_equal(HostReward(url).score(IMAGES, QUESTIONS), [1, np.nan, 3, 4, 5])
    reward = load(f"{__name__}:some")
    expected = [np.nan, 2, np.nan, 4.5, 5]
    np.testing.assert_array_equal(reward.score(IMAGES, QUESTIONS), expected)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, 2.0), "has failed 2 times, last: no answer within the timeout"),
        ((200, 0.0), "has failed 2 times, last: the connection broke"),
        ((500, b"out of memory"), "has failed 2 times, last: HTTP status 500: out of memory"),
        ((404, b"nobody here"), "answered with HTTP status 404: nobody here"),
        ((200, b"<html>"), "did not answer with a msgpack map that has 'scores'"),
        ((200, msgpack.packb({"rewards": [1]})), "did not answer with a msgpack map"),
        ((200, msgpack.packb([1, 2])), "did not answer with a msgpack map"),
        (scores(1, 2, 3), r"gave scores of shape \(3,\) for 5 images"),
        (scores([1], [2], [3], [4], [5]), r"gave scores of shape \(5, 1\) for 5 images"),
        (scores("1", "2", "3", "4", "5"), "gave no list of numbers for 5 images"),
        (scores([1], 2, 3, 4, 5), "gave no list of numbers"),
        (scores(*[True] * 5), "gave no list of numbers"),
        ((200, msgpack.packb({"scores": None})), "gave no list of numbers"),
    ],
)
def test_servers_that_fail_for_good(serve_answers, answer, message):
    url, _ = serve_answers(answer)
    with pytest.raises(ScorerError, match=f"The scorer {url} {message}"):
        HostReward(url, timeout=0.3, retries=1).score(IMAGES, QUESTIONS)


@pytest.fixture
def serve_bytes():
    """A function that starts a server which answers each connection with pieces as they come."""
    sockets = []

    def start(pieces):
        listening = socket.create_server(("localhost", 0))
        sockets.append(listening)
        connections = []

        def answer(connection):
            with contextlib.suppress(OSError), connection:
                connection.recv(2**16)
                for piece in pieces():
                    connection.sendall(piece)
                # Closed with a request unread, it would take the answer back.
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(2**16):
                    pass

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    connections.append(connection)
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return f"http://localhost:{listening.getsockname()[1]}/score", connections

    yield start
    for listening in sockets:
        listening.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/msgpack\r\n"


def slowly(whole):
    """A byte each 0.05 seconds: none is too late by itself."""
    for index in range(len(whole)):
        yield whole[index : index + 1]
        time.sleep(0.05)


def silently():
    time.sleep(20)
    yield b""


@pytest.mark.parametrize(
    "pieces",
    [
        lambda: slowly(OK + b"X-Slow: " + b"a" * 1000),
        lambda: itertools.chain([OK + b"\r\n"], slowly(b"a" * 400)),
        lambda: [OK + b"Content-Length: 400\r\n\r\na"],
        lambda: slowly(b"HTTP/1.1 200 " + b"O" * 1000),
        silently,
    ],
    ids=["headers", "body", "cut", "status", "nothing"],
)
def test_the_whole_answer_has_a_limit_of_time(serve_bytes, pieces):
    url, connections = serve_bytes(pieces)
    begun = time.monotonic()
    with pytest.raises(ScorerError, match="has failed 2 times, last: (no answer|the connection)"):
        HostReward(url, timeout=0.5, retries=1).score(IMAGES, QUESTIONS)
    assert time.monotonic() - begun < 3
    assert len(connections) == 2


@pytest.mark.parametrize("pieces", [lambda: slowly(OK), silently], ids=["slow", "silent"])
def test_a_start_waits_neither_long_nor_in_silence(serve_bytes, pieces, monkeypatch, caplog):
    monkeypatch.setattr(http_scorer, "LONGEST_START", 1.0)
    monkeypatch.setattr(http_scorer, "QUIET_START", 0.1)
    url, _ = serve_bytes(pieces)
    begun = time.monotonic()
    message = f"The scorer {url} does not answer .no answer within the timeout.: start it, or mend"
    with caplog.at_level("INFO"), pytest.raises(ValueError, match=message):
        load(url)
    assert time.monotonic() - begun < 3
    assert f"Waiting for the scorer {url} to answer, for 1 seconds at most." in caplog.text


def test_a_start_takes_no_more_than_the_headers(serve_bytes):
    url, _ = serve_bytes(lambda: itertools.chain([OK + b"\r\n"], slowly(b"a" * 400)))
    begun = time.monotonic()
    load(url)
    assert time.monotonic() - begun < 3


def test_the_answer_has_a_limit_of_bytes(serve_bytes):
    sent = []

    def endless():
        yield OK + b"\r\n"
        while True:
            sent.append(2**16)
            yield bytes(2**16)

    url, _ = serve_bytes(endless)
    with pytest.raises(ScorerError, match="answered with more than 1,048,656 bytes"):
        HostReward(url, retries=0).score(IMAGES, QUESTIONS)
    assert sum(sent) < 2**26  # What waits in sockets is little.


def nested(depth):
    return b"\x81\xa6scores" + b"\x91" * depth + b"\xc0"


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (b"gzip", gzip.compress(bytes(2**26))),
        (b"deflate", zlib.compress(msgpack.packb({"scores": [1.0] * 5}))),
        (b"identity", nested(400_000)),
        (b"identity", b"\x81\xa6scores\xdd\xff\xff\xff\xff"),
        (b"identity", b"\x81\xa6scores\xc9\xff\xff\xff\xff\x05"),
        (b"identity", msgpack.packb({1: 2, "scores": [1.0] * 5})),
    ],
    ids=["gzip", "deflate", "nested", "claims_an_array", "claims_a_type", "integer_keys"],
)
def test_bombs_are_not_unpacked(serve_bytes, encoding, body):
    url, _ = serve_bytes(lambda: [OK + b"Content-Encoding: " + encoding + b"\r\n\r\n", body])
    with pytest.raises(ScorerError, match="did not answer with a msgpack map that has 'scores'"):
        HostReward(url, retries=0).score(IMAGES, QUESTIONS)


def test_scores_within_lists_are_none(serve_bytes):
    url, _ = serve_bytes(lambda: [OK + b"\r\n", nested(400)])
    with pytest.raises(ScorerError, match="gave no list of numbers") as error:
        HostReward(url, retries=0).score(IMAGES, QUESTIONS)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirections_are_not_followed(serve_bytes, serve_answers, status):
    other, requests = serve_answers(scores(1, 2, 3, 4, 5))
    secret = other.replace("http://", "http://user:secret@")
    head = f"HTTP/1.1 {status} Elsewhere\r\nLocation: {secret}\r\nContent-Length: 0\r\n\r\n"
    url, _ = serve_bytes(lambda: [head.encode()])
    message = f"answered with HTTP status {status} to '{other}', which is not followed"
    with pytest.raises(ScorerError, match=message):
        HostReward(url, retries=0).score(IMAGES, QUESTIONS)
    assert not requests


def test_what_a_server_says_is_shown_in_printable_characters(serve_answers):
    url, _ = serve_answers((500, b"\x1b[2J\x07out\r\nof \xffmemory"))
    with pytest.raises(ScorerError, match="HTTP status 500:  .2J out  of \ufffdmemory") as error:
        HostReward(url, retries=0).score(IMAGES, QUESTIONS)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "address",
    [
        "http://user:secret@gpu-host:8000/score",
        "https://secret@gpu-host",
        "HTTP://user:sec@secret@gpu-host/score?a=b",
        "http://user:secret/secret@gpu-host/score",
    ],
)
def test_addresses_with_a_password_are_refused_without_showing_it(address):
    scorer = common.make_scorer("host_reward", address)
    for refuse in (
        lambda: HostReward(address),
        lambda: experiment.load_scorer(scorer, 1),
        lambda: scorers.is_on_host(common.make_weighted_sum(a=(scorer, 1.0))),
    ):
        with pytest.raises(ValueError, match="gpu-host.* has a user or a password") as error:
            refuse()
        assert "secret" not in str(error.value)


def test_what_may_be_secret_is_in_no_message(serve_answers):
    url, _ = serve_answers((404, b"nobody here"))
    with pytest.raises(ScorerError, match="nobody here") as error:
        HostReward(f"{url}?token=secret").score(IMAGES, QUESTIONS)
    assert f"The scorer {url}?... answered" in str(error.value)
    with pytest.raises(ValueError, match="timeout=-1") as error:
        HostReward(f"{url}?token=secret", timeout=-1)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["http://", "http://localhost:99999/", "http://a b/", "http://[::1", "http://é..é/x"]
)
def test_odd_addresses_are_named(url):
    with pytest.raises(ValueError, match="The scorer .* does not answer .*: start it, or mend"):
        load(url, retries=0, timeout=2.0)


def test_connections_are_kept(serve, example):
    """A server that opens one for each request would soon have none left."""
    server = example.make_server(brightness, 0)
    accepted, accept = [], server.get_request
    server.get_request = lambda: accepted.append(accept()) or accepted[-1]
    reward = HostReward(serve(server), images_per_call=1, concurrent_requests=1)
    for _ in range(3):
        np.testing.assert_array_equal(reward.score(IMAGES, QUESTIONS), EXPECTED)
    assert len(accepted) == 1


def test_a_server_that_is_not_there_is_named_at_the_start():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        url = f"http://localhost:{free.getsockname()[1]}"
    with pytest.raises(
        ValueError, match=f"The scorer {url} does not answer .no connection.: start"
    ):
        load(url, retries=1)
