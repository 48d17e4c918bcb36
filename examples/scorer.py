"""Serves a Python function as a scorer over HTTP; the protocol is in docs/rewards_of_your_own.md.

    python examples/scorer.py --function=package.module:function --port=8000

It needs msgpack, NumPy and Pillow, neither JAX nor this project: copy it to where the model runs.
It answers this machine alone unless --host says otherwise, and asks nobody for a password: let only
those reach it whose pictures you would score.
"""

import argparse
import contextlib
import http.server
import importlib
import io
import itertools
import math
import socket
import sys
import threading
from collections.abc import Callable

import msgpack
import numpy as np
from PIL import Image

MOST_BYTES = 2**28  # Of a request, and again of its pictures when they are decoded.
MOST_IMAGES = 4096
MOST_FIELDS = 64  # Of a map in it.
MOST_CONNECTIONS = 256  # Further ones wait to be accepted.
QUIET_SECONDS = 10  # After which a connection is closed on which nothing comes,
REQUEST_SECONDS = 60  # or a request that has not come as a whole.


class Refusal(Exception):
    """A request that is not answered: an HTTP status, and what is wrong with it."""


def need(condition: bool, what: str) -> None:
    """Refuses the request where the condition does not hold."""
    if not condition:
        raise Refusal(400, f"The request {what}.")


def unpack(body: bytes) -> dict:
    """The question in a request's body: a map in which everything has the right type and number."""
    number = itertools.count()

    def counted(container):
        need(next(number) < MOST_IMAGES + MOST_FIELDS, "has too many lists and maps")
        return container

    try:
        question = msgpack.unpackb(
            body,
            list_hook=counted,
            object_hook=counted,
            max_array_len=MOST_IMAGES,
            max_map_len=MOST_FIELDS,
        )
    except Refusal:
        raise
    except Exception as error:  # msgpack raises many kinds.
        raise Refusal(400, f"The request is no msgpack that is taken: {error}.") from error
    need(isinstance(question, dict), "is no map")
    need(question.get("format") in ("png", "raw"), "has no format, png or raw")
    shape = question.get("shape")
    need(isinstance(shape, list) and len(shape) == 4, "has no shape [n, height, width, 3]")
    need(all(type(n) is int and n > 0 for n in shape), "has no shape [n, height, width, 3]")
    need(shape[3] == 3 and math.prod(shape) <= MOST_BYTES, f"has pictures of shape {shape}")
    for field, kind in (("images", bytes), ("prompts", str), ("metadata", dict)):
        values = question.get(field)
        need(isinstance(values, list) and len(values) == shape[0], f"has not {shape[0]} {field}")
        need(all(isinstance(value, kind) for value in values), f"has {field} of another type")
    return question


def read_images(question: dict) -> np.ndarray:
    """The images of a request, uint8 [n, H, W, 3]."""
    count, height, width, _ = question["shape"]
    images = np.empty(question["shape"], np.uint8)
    for place, file in enumerate(question["images"]):
        if question["format"] == "raw":
            need(len(file) == images[place].size, f"has an image {place} of {len(file)} bytes")
            images[place] = np.frombuffer(file, np.uint8).reshape(height, width, 3)
            continue
        try:
            with Image.open(io.BytesIO(file), formats=["PNG"]) as image:
                # Before it is decoded: the file may be small, and the picture not.
                need(image.size == (width, height), f"has an image {place} of size {image.size}")
                images[place] = image.convert("RGB")
        except Refusal:
            raise
        except Exception as error:  # Pillow raises many kinds.
            raise Refusal(400, f"The request's image {place} is no PNG: {error}.") from error
    return images


class Server(http.server.ThreadingHTTPServer):
    """A thread a connection, and no more than so many."""

    request_queue_size = 128

    def __init__(self, host: str, port: int, handler: type):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.connections = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__((host, port), handler)

    def process_request(self, request, client_address):
        self.connections.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request, client_address):
        print(f"{client_address[0]}: {sys.exc_info()[1]!r}", file=sys.stderr, flush=True)


def make_server(
    function: Callable, port: int, parallel: bool = False, host: str = "127.0.0.1"
) -> Server:
    """A server that answers with function(images, prompts, metadata).

    Args:
      function: called once at a time.
      port: 0 takes a free one.
      parallel: whether it may be called by several requests' threads at once instead.
      host: the address to listen on; "0.0.0.0" is all of this machine's.
    """
    turn = contextlib.nullcontext() if parallel else threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # Keeps connections open.
        timeout = QUIET_SECONDS

        def handle_one_request(self):
            # A byte now and then is not quiet: whatever has not come in time is dropped.
            self.late = threading.Timer(REQUEST_SECONDS, self.drop)
            self.late.daemon = True
            self.late.start()
            try:
                super().handle_one_request()
            finally:
                self.late.cancel()

        def drop(self):
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def do_GET(self):
            self.answer(200, b"POST images here.")

        def do_POST(self):
            try:
                body = self.read_body()
            except Refusal as refusal:
                return self.close_after(*refusal.args)
            self.late.cancel()
            try:
                question = unpack(body)
                images = read_images(question)
                with turn:
                    scores = function(images, question["prompts"], question["metadata"])
                answer = 200, msgpack.packb({"scores": np.asarray(scores, float).tolist()})
            except Refusal as refusal:
                status, message = refusal.args
                answer = status, message.encode()
            except (Exception, SystemExit) as error:
                answer = 500, f"{type(error).__name__}: {error}".encode()
            self.answer(*answer)

        def read_body(self) -> bytes:
            if "Transfer-Encoding" in self.headers:
                raise Refusal(501, "A body needs a Content-Length, not a Transfer-Encoding.")
            lengths = self.headers.get_all("Content-Length", [])
            if not lengths:
                raise Refusal(411, "A body needs a Content-Length.")
            length = lengths[0].strip()
            need(len(lengths) == 1, "has several Content-Lengths")
            need(length.isascii() and length.isdigit(), "has a Content-Length that is no number")
            if len(length) > 18 or int(length) > MOST_BYTES:
                raise Refusal(413, f"A body has {MOST_BYTES:,} bytes at most: send fewer images.")
            body = self.rfile.read(int(length))
            need(len(body) == int(length), "ends too early")
            return body

        def close_after(self, status: int, message: str):
            """Answers, and closes the connection when what is still being sent has come."""
            self.close_connection = True
            self.answer(status, message.encode())
            with contextlib.suppress(OSError):  # It may have left.
                self.connection.shutdown(socket.SHUT_WR)
                while self.rfile.read1(2**16):
                    pass

        def answer(self, status: int, body: bytes):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            """Requests are many: nothing is printed."""

    return Server(host, port, Handler)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--function", required=True, help="package.module:function")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 is all of this machine's")
    parser.add_argument("--parallel", action="store_true", help="calls it several times at once")
    arguments = parser.parse_args()
    module, _, name = arguments.function.partition(":")
    function = getattr(importlib.import_module(module), name)
    server = make_server(function, arguments.port, arguments.parallel, arguments.host)
    print(f"Scoring on {arguments.host}, port {server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
