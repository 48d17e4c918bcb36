"""Scorers outside of the graph, and everything that they may answer."""

import http.server
import importlib.util
import io
import pathlib
import socket
import sys
import threading
import time

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
import torch
from PIL import Image

from configs import common
from diffusionrl_jax import experiment
from diffusionrl_jax.rewards import http_scorer
from diffusionrl_jax.rewards.host_reward import HostReward, Questions, ScorerError, host_rewards

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)
QUESTIONS = Questions([f"prompt {n}" for n in range(5)], [{"index": n} for n in range(5)])
EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "scorer.py"


def brightness(images, prompts, metadata):
    assert images.dtype == np.uint8 and len(prompts) == len(metadata) == len(images)
    return images.mean((1, 2, 3)) + 1000 * np.array([values["index"] for values in metadata])


EXPECTED = (IMAGES.mean((1, 2, 3)) + 1000 * np.arange(5)).astype(np.float32)


def sleepy(images, prompts, metadata):
    time.sleep(20)


def raising(images, prompts, metadata):
    raise KeyError("no such cat")


def leaving(images, prompts, metadata):
    sys.exit("out of memory")


def too_few(images, prompts, metadata):
    return [1.0]


def words(images, prompts, metadata):
    return ["good"] * len(images)


class Refusing:
    def __array__(self, *arguments, **options):
        raise RuntimeError("not in this life")


def refusing(images, prompts, metadata):
    return Refusing()


def tensor(images, prompts, metadata):
    return torch.arange(5.0)


def tensor_in_bfloat16(images, prompts, metadata):
    return torch.arange(5.0, dtype=torch.bfloat16)


def tensor_with_gradient(images, prompts, metadata):
    return torch.arange(5.0, requires_grad=True)


def list_of_tensors(images, prompts, metadata):
    return list(torch.arange(5.0))


def jax_in_bfloat16(images, prompts, metadata):
    return jnp.arange(5, dtype=jnp.bfloat16)


def some(images, prompts, metadata):
    return [None, 2, float("nan"), 4.5, 5]


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


def scores(*values):
    return 200, msgpack.packb({"scores": list(values)})


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("scorer", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(path, **options):
    return HostReward.load(path, **options)[0]


@pytest.mark.parametrize("images_per_call", [0, 2, 5, 9])
def test_a_function(images_per_call):
    reward = load(f"{__name__}:brightness", images_per_call=images_per_call)
    np.testing.assert_array_equal(reward.score(IMAGES, QUESTIONS), EXPECTED)


@pytest.mark.parametrize("name", ["tensor", "list_of_tensors", "jax_in_bfloat16"])
def test_scores_may_be_arrays_of_many_kinds(name):
    scores = load(f"{__name__}:{name}").score(IMAGES, QUESTIONS)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, range(5))


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sleepy", "has not returned within 0.3 seconds"),
        ("raising", "raised KeyError: 'no such cat'"),
        ("leaving", "raised SystemExit: out of memory"),
        ("too_few", r"gave scores of shape \(1,\) for 5 images"),
        ("words", r"gave no list of numbers for 5 images, but \['good'"),
        ("refusing", r"gave no list of numbers for 5 images, but .* \(not in this life\)\."),
        ("tensor_with_gradient", r"gave no list of numbers .* Use tensor\.detach\(\)\.numpy\(\)"),
        ("tensor_in_bfloat16", "gave no list of numbers .* unsupported ScalarType BFloat16"),
    ],
)
def test_functions_that_fail(name, message):
    with pytest.raises(ScorerError, match=f"The scorer .*test_host_reward:{name} {message}"):
        load(f"{__name__}:{name}", timeout=0.3).score(IMAGES, QUESTIONS)


def test_a_server_that_is_not_there_is_named_at_the_start():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        url = f"http://localhost:{free.getsockname()[1]}"
    with pytest.raises(
        ValueError, match=f"The scorer {url} does not answer .no connection.: start"
    ):
        load(url, retries=1)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("no_such_module:score", {}, "'no_such_module:score' cannot be imported"),
        (f"{__name__}:nothing", {}, "nothing' cannot be imported"),
        ("brightness", {}, "'brightness' is not of the form package.module:name"),
        (f"{__name__}:IMAGES", {}, "is a ndarray, not a function"),
        (f"{__name__}:brightness", {"image_format": "gif"}, "image_format='gif' must be one of"),
        (f"{__name__}:brightness", {"timeout": 0}, "timeout=0 must be at least"),
        (f"{__name__}:brightness", {"tries": 3}, r"host_reward has no option \['tries'\]"),
    ],
)
def test_bad_configs(path, options, message):
    scorer = common.make_scorer("host_reward", path, **options)
    with pytest.raises(ValueError, match=message):
        experiment.load_scorer(scorer, group_size=1)


def test_parts_of_a_sum_are_found():
    ours = common.make_scorer("host_reward", f"{__name__}:brightness")
    inner = common.make_weighted_sum(ours=(ours, 2.0), other=(ours, 1.0))
    reward, params = experiment.load_scorer(common.make_weighted_sum(all=(inner, -1.0)), 1)
    assert set(host_rewards(reward)) == {"all/ours/scores", "all/other/scores"}
    inputs = {"all/ours/scores": np.float32([3, 4]), "all/other/scores": np.float32([5, 6])}
    np.testing.assert_array_equal(reward(params, None, inputs), [-11, -14])
