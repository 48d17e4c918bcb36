"""The example server, asked in every way that does it no good."""

import importlib.util
import io
import itertools
import pathlib
import re
import socket
import threading
import time

import msgpack
import numpy as np
import pytest
import urllib3
from PIL import Image

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "scorer.py"
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 3), np.uint8)


def png(image, kind="png"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


QUESTION = {
    "format": "png",
    "shape": [2, 6, 4, 3],
    "images": [png(image) for image in IMAGES],
    "prompts": ["a cat", "a dog"],
    "metadata": [{"index": 0}, {"index": 1}],
}


def brightness(images, prompts, metadata):
    if prompts[0] == "leave":
        raise SystemExit(0)
    if prompts[0] == "fail":
        raise KeyError("no such cat")
    means = images.mean((1, 2, 3)).tolist()
    return [means[0], None if prompts[1] == "nothing" else means[1]]


@pytest.fixture
def module():
    spec = importlib.util.spec_from_file_location("scorer", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def serve(module, monkeypatch):
    """A function that starts the server with other limits: its port."""
    servers = []

    def start(**limits):
        for name, value in limits.items():
            monkeypatch.setattr(module, name, value)
        servers.append(module.make_server(brightness, 0))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1].server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def post(port, body=None, **changes):
    body = msgpack.packb(QUESTION | changes) if body is None else body
    answer = urllib3.request("POST", f"http://127.0.0.1:{port}/", body=body, retries=False)
    return answer.status, answer.data


def exchange(port, request):
    """What comes back, to the end of the headers."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(request)
        received = b""
        while piece := connection.recv(2**16):
            received += piece
            if b"\r\n\r\n" in received:
                break
    return received


def test_it_scores(serve):
    port = serve()
    for changes in ({}, {"format": "raw", "images": [image.tobytes() for image in IMAGES]}):
        status, body = post(port, **changes)
        assert status == 200
        np.testing.assert_array_equal(msgpack.unpackb(body)["scores"], IMAGES.mean((1, 2, 3)))
    status, body = post(port, prompts=["a cat", "nothing"])
    assert np.isnan(msgpack.unpackb(body)["scores"]).tolist() == [False, True]


def test_it_listens_where_it_is_told_to(module):
    for host, expected in (({}, "127.0.0.1"), ({"host": "0.0.0.0"}, "0.0.0.0")):
        server = module.make_server(brightness, 0, **host)
        assert server.server_address[0] == expected
        server.server_close()


HUGE = {"shape": [2, 20_000, 20_000, 3]}
SQUARE = np.zeros((5, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"body": b"<html>"}, b"is no msgpack that is taken|is no map"),
        ({"body": b""}, b"is no msgpack that is taken"),
        ({"body": msgpack.packb([1, 2])}, b"is no map"),
        ({"body": msgpack.packb(QUESTION)[:-9]}, b"is no msgpack that is taken"),
        ({"body": b"\x91" * 100_000 + b"\xc0"}, b"is no msgpack|too many lists"),
        ({"body": b"\xdd\x00\x10\x00\x00" + b"\x90" * 2**20}, b"is no msgpack that is taken"),
        ({"body": b"\xdc\x10\x00" + (b"\xdc\x00\xff" + b"\x90" * 255) * 4096}, b"too many lists"),
        ({"body": b"\xdd\xff\xff\xff\xff"}, b"is no msgpack that is taken"),
        ({"body": msgpack.packb({1: 2})}, b"is no msgpack that is taken"),
        ({"format": "gif"}, b"has no format, png or raw"),
        ({"format": [1]}, b"has no format, png or raw"),
        ({"shape": "many"}, b"has no shape"),
        ({"shape": [2, 6, 4]}, b"has no shape"),
        ({"shape": [2, -6, -4, 3]}, b"has no shape"),
        ({"shape": [2, 6.0, 4, 3]}, b"has no shape"),
        ({"shape": [0, 6, 4, 3]}, b"has no shape"),
        ({"shape": [2, 6, 4, 1]}, b"has pictures of shape"),
        (HUGE, b"has pictures of shape"),
        ({"images": QUESTION["images"][:1]}, b"has not 2 images"),
        ({"images": ["a", "b"]}, b"has images of another type"),
        ({"prompts": [1, 2]}, b"has prompts of another type"),
        ({"metadata": None}, b"has not 2 metadata"),
        ({"metadata": [1, 2]}, b"has metadata of another type"),
        ({"images": [png(SQUARE)] * 2}, b"has an image 0 of size \\(5, 5\\)"),
        ({"images": [png(IMAGES[0], "gif")] * 2}, b"image 0 is no PNG"),
        ({"images": [QUESTION["images"][0], b"rubbish"]}, b"image 1 is no PNG"),
        ({"images": [file[:60] for file in QUESTION["images"]]}, b"image 0 is no PNG"),
        ({"format": "raw"}, b"has an image 0 of .* bytes"),
    ],
    ids=range(28),
)
def test_bad_requests_are_refused_by_name(serve, changes, message, capsys):
    port = serve()
    status, body = post(port, **changes)
    assert status == 400, body
    assert re.search(message, body), body
    assert post(port)[0] == 200
    assert not capsys.readouterr().err


def test_what_the_function_does_is_its_own_error(serve):
    port = serve()
    assert post(port, prompts=["fail", ""]) == (500, b"KeyError: 'no such cat'")
    assert post(port, prompts=["leave", ""]) == (500, b"SystemExit: 0")
    assert post(port)[0] == 200


HEAD = b"POST / HTTP/1.1\r\nHost: here\r\n"


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"", b"411"),
        (b"Content-Length: -1\r\n", b"400"),
        (b"Content-Length: \r\n", b"400"),
        (b"Content-Length: 1e3\r\n", b"400"),
        (b"Content-Length: +3\r\n", b"400"),
        (b"Content-Length: 3\r\nContent-Length: 4\r\n", b"400"),
        (b"Content-Length: 268435457\r\n", b"413"),
        (b"Content-Length: " + b"9" * 5000 + b"\r\n", b"413"),
        (b"Transfer-Encoding: chunked\r\n", b"501"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", b"501"),
    ],
    ids=range(10),
)
def test_bodies_need_a_length_that_can_be(serve, header, status):
    answer = exchange(serve(), HEAD + header + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status) and b"\r\nConnection: close\r\n" in answer


def test_a_body_that_is_too_large_is_refused_while_it_comes(serve):
    status, message = post(serve(MOST_BYTES=2**20), bytes(2**24))
    assert status == 413 and b"1,048,576 bytes at most" in message


def test_pictures_have_a_limit_of_bytes_when_they_are_decoded(serve):
    """A request of some kilobytes."""
    white = png(np.zeros((2000, 2000, 3), np.uint8))
    changes = {"shape": [2, 2000, 2000, 3], "images": [white] * 2}
    assert len(msgpack.packb(QUESTION | changes)) < 2**18
    status, message = post(serve(MOST_BYTES=2**20), **changes)
    assert status == 400 and b"has pictures of shape" in message


def slowly(whole, pause):
    for index in range(len(whole)):
        yield whole[index : index + 1]
        time.sleep(pause)


@pytest.mark.parametrize(
    "pieces",
    [
        lambda: [],
        lambda: [HEAD],
        lambda: [HEAD + b"Content-Length: 900\r\n\r\nabc"],
        lambda: slowly(HEAD * 9, 0.1),
        lambda: itertools.chain([HEAD + b"Content-Length: 900\r\n\r\n"], slowly(b"a" * 900, 0.1)),
        lambda: slowly(HEAD[:1] + b"a" * 900, 0.1),
    ],
    ids=["nothing", "no_end", "no_body", "slow_headers", "slow_body", "slow_line"],
)
def test_slow_clients_are_dropped(serve, pieces):
    port = serve(QUIET_SECONDS=0.5, REQUEST_SECONDS=1.0)
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        try:
            for piece in pieces():
                connection.sendall(piece)
            while connection.recv(2**16):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert time.monotonic() - begun < 4
    assert post(port)[0] == 200


def test_more_connections_wait_for_their_turn(serve):
    port = serve(MOST_CONNECTIONS=2, QUIET_SECONDS=0.5)
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(6)]
    threads = threading.active_count()
    assert post(port)[0] == 200
    assert threading.active_count() <= threads + 8
    for connection in idle:
        connection.close()
