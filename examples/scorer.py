"""Serves a Python function as a scorer over HTTP; the protocol is in docs/rewards_of_your_own.md.

    python examples/scorer.py --function=package.module:function --port=8000

It needs msgpack, NumPy and Pillow, neither JAX nor this project: copy it to where the model runs.
"""

import argparse
import contextlib
import http.server
import importlib
import io
import threading
from collections.abc import Callable

import msgpack
import numpy as np
from PIL import Image


def read_images(question: dict) -> np.ndarray:
    """The images of a request, uint8 [n, H, W, 3]."""
    shape = question["shape"]
    if question["format"] == "raw":
        return np.frombuffer(b"".join(question["images"]), np.uint8).reshape(shape)
    images = [Image.open(io.BytesIO(image)) for image in question["images"]]
    return np.stack([np.asarray(image.convert("RGB")) for image in images])


def make_server(
    function: Callable, port: int, parallel: bool = False
) -> http.server.ThreadingHTTPServer:
    """A server that answers with function(images, prompts, metadata).

    Args:
      function: called once at a time.
      port: 0 takes a free one.
      parallel: whether it may be called by several requests' threads at once instead.
    """
    turn = contextlib.nullcontext() if parallel else threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # Keeps connections open.

        def do_GET(self):
            self.answer(200, b"POST images here.")

        def do_POST(self):
            question = msgpack.unpackb(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                images = read_images(question)
                with turn:
                    scores = function(images, question["prompts"], question["metadata"])
                answer = 200, msgpack.packb({"scores": np.asarray(scores, float).tolist()})
            except Exception as error:
                answer = 500, f"{type(error).__name__}: {error}".encode()
            self.answer(*answer)

        def answer(self, status: int, body: bytes):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            """Requests are many: nothing is printed."""

    return http.server.ThreadingHTTPServer(("", port), Handler)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--function", required=True, help="package.module:function")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--parallel", action="store_true", help="calls it several times at once")
    arguments = parser.parse_args()
    module, _, name = arguments.function.partition(":")
    function = getattr(importlib.import_module(module), name)
    server = make_server(function, arguments.port, arguments.parallel)
    print(f"Scoring on port {server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
