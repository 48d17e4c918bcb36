"""Serves each rater's page over HTTP, and appends the votes.

There are three kinds of addresses: /TOKEN/ is the page of the rater with that token,
/TOKEN/NUMBER/SIDE a picture of the rater's question of that number, and to /TOKEN/NUMBER a vote is
sent. Tokens and numbers are looked up in the database, and no part of an address becomes a part of
a path. A picture's address does not tell which model has drawn it.
"""

import http.server
import json
import re
import sys
from http import HTTPStatus
from typing import cast

from absl import logging
from etils import epath

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.reporting.study import pages, votes
from diffusionrl_jax.reporting.study.questions import CHOICES, LEFT
from diffusionrl_jax.reporting.study.records import Study, picture_path
from diffusionrl_jax.reporting.study.votes import Rater

ADDRESS = re.compile(r"/([A-Za-z0-9_-]{22})(/(?:([0-9]{1,6})(?:/(left|right))?)?)?")
MOST_BYTES = 1024  # Of a vote.
GONE = (ConnectionError, TimeoutError)
# Tokens are kept out of the addresses that browsers tell others, and pages out of caches.
HEADERS = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex",
}


class StudyServer(http.server.ThreadingHTTPServer):
    """A server of one study, with a thread for each connection.

    Args:
      address: host and port to listen at; port 0 takes any that is free.
      folder: the study's folder, with the database, see `votes.prepare`.
      study: the study.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], folder: epath.Path, study: Study):
        super().__init__(address, _Handler)
        self.folder, self.study = folder, study

    def handle_error(self, request, client_address):
        """Shows the traceback of what failed, unless a rater only went away."""
        if not isinstance(sys.exception(), GONE):
            logging.exception("A request failed.")


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "study", ""
    timeout = 60  # Seconds without a byte, after which a connection is closed.

    def do_GET(self):
        self._answer(self._get)

    def do_POST(self):
        self._answer(self._post)

    def log_message(self, format, *args):
        """Logs no addresses, whose tokens are secrets."""

    @property
    def _folder(self) -> epath.Path:
        return cast(StudyServer, self.server).folder

    def _answer(self, respond) -> None:
        try:
            found = ADDRESS.fullmatch(self.path)
            rater = votes.find_rater(self._folder, found[1]) if found else None
            if not found or rater is None or rater.kind != votes.SERVED:
                self._refuse(HTTPStatus.NOT_FOUND)
            else:
                respond(rater, found)
        except GONE:
            raise
        except (UserError, OSError) as error:  # The database or a picture cannot be read now.
            logging.error("%s", error)
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)

    def _get(self, rater: Rater, found: re.Match) -> None:
        _, rest, number, side = found.groups()
        if rest is None:
            self._send(HTTPStatus.MOVED_PERMANENTLY, b"", "text/plain", Location=f"{found[1]}/")
        elif number is None:
            page = pages.rater_page(
                cast(StudyServer, self.server).study,
                rater,
                votes.read_questions(self._folder, rater),
                {vote.number: vote.choice for vote in votes.read_votes(self._folder, rater)},
            )
            self._send(HTTPStatus.OK, page.encode(), "text/html; charset=utf-8")
        elif side is None:
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED)
        else:
            questions = votes.read_questions(self._folder, rater)
            if int(number) >= len(questions):
                self._refuse(HTTPStatus.NOT_FOUND)
                return
            question = questions[int(number)]
            name = question.left if side == LEFT else question.right
            picture = picture_path(self._folder, name, question.pair).read_bytes()
            self._send(HTTPStatus.OK, picture, "image/png", "private, max-age=86400")

    def _post(self, rater: Rater, found: re.Match) -> None:
        _, _, number, side = found.groups()
        length = self.headers.get("Content-Length", "")
        if number is None or side is not None:
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED)
        elif not (length.isascii() and length.isdecimal()):
            self._refuse(HTTPStatus.LENGTH_REQUIRED)
        elif int(length) > MOST_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            choice = _choice(self.rfile.read(int(length)))
            if choice is None:
                self._refuse(HTTPStatus.BAD_REQUEST)
                return
            first = votes.vote(self._folder, rater, int(number), choice)
            if first is None:
                self._refuse(HTTPStatus.NOT_FOUND)
                return
            status = HTTPStatus.OK if first == choice else HTTPStatus.CONFLICT
            self._send(status, json.dumps({"choice": first}).encode(), "application/json")

    def _refuse(self, status: HTTPStatus) -> None:
        # What the client still sends is not read.
        self.close_connection = True
        self._send(status, f"{status.phrase}\n".encode(), "text/plain", Connection="close")

    def _send(
        self, status: HTTPStatus, content: bytes, kind: str, cache: str = "no-store", **headers: str
    ) -> None:
        self.send_response(status)
        every = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": cache}
        for name, value in (every | HEADERS | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _choice(content: bytes) -> str | None:
    """Returns the choice of a vote, {"choice": "left"}, or None if it is not one."""
    try:
        choice = json.loads(content)["choice"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return choice if isinstance(choice, str) and choice in CHOICES else None
