"""Scores from an HTTP server. The protocol is in docs/rewards_of_your_own.md.

A server is not trusted: all of an answer has a limit of time and of bytes, nothing of it is
unpacked but msgpack, no redirection is followed, and what is shown of it are printable characters.
"""

import concurrent.futures
import dataclasses
import functools
import io
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
import urllib3
from absl import logging
from PIL import Image

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.rewards.background import in_background

FORMATS = ("png", "raw")
CONTENT_TYPE = "application/msgpack"
# Of a server that is overloaded, restarting or behind a proxy; anything else is final.
PASSING_STATUSES = (408, 425, 429, 500, 502, 503, 504)
MOST_CONNECTIONS = 64
# Seconds: the first retry follows at once, the next after 1, 2, 4, ... and a random part of this.
BACKOFF, LONGEST_BACKOFF, JITTER = 0.5, 60.0, 0.5
# Of an answer: a score takes 9 bytes, and the rest may say what it likes.
MOST_BYTES, BYTES_AN_IMAGE = 2**20, 16
PIECE = 2**16
# Seconds: what a server has for its first answer, and after which the user is told of it.
LONGEST_START, QUIET_START = 60.0, 2.0
SHOWN = 200  # Characters of an answer.


class ScorerError(OSError):
    """A scorer outside of the graph has failed for good; the message names it."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
      status: HTTP's.
      headers: by name.
      body: as it was sent, cut behind the limit.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def shown(self) -> str:
        """The beginning of the body in printable characters: no escapes for a terminal."""
        text = self.body[:SHOWN].decode(errors="replace")
        return "".join(character if character.isprintable() else " " for character in text)


def is_address(scorer: str) -> bool:
    """Whether a scorer is the address of a server, rather than a function's name."""
    return scorer.lower().startswith(("http://", "https://"))


def check_address(url: str) -> None:
    """Refuses an address that holds a password, without showing it.

    Raises:
      UserError: it has a user or a password.
    """
    address, _, _ = url.partition("?")
    if "@" in address:
        raise UserError(
            f"The scorer {shown(url)} has a user or a password in its address, which config.json "
            "would hold for all to read: leave it out, and keep the server in a private network."
        )


def shown(scorer: str) -> str:
    """How messages call a scorer: a function's name, or an address without what may be secret."""
    if not is_address(scorer):
        return scorer
    scheme, _, rest = scorer.partition("://")
    address, question, _ = rest.partition("?")
    *_, address = address.split("@")
    return f"{scheme}://{address}{'?...' if question else ''}"


@functools.cache
def _connections() -> urllib3.PoolManager:
    return urllib3.PoolManager(maxsize=MOST_CONNECTIONS)


def _encode(image: np.ndarray, image_format: str) -> bytes:
    if image_format == "raw":
        return image.tobytes()
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _open(method: str, url: str, timeout: float, **request) -> urllib3.BaseHTTPResponse:
    """Asks, and reads no more than the headers."""
    return _connections().request(
        method, url, timeout=timeout, retries=False, preload_content=False, **request
    )


def _ask(url: str, timeout: float, most_bytes: int, **request) -> Answer:
    """One request; the thread that it is in may be given up."""
    deadline = time.monotonic() + timeout
    response, body = _open("POST", url, timeout, **request), bytearray()
    try:
        while piece := response.read1(PIECE, decode_content=False):  # A bomb stays packed.
            body += piece
            if len(body) > most_bytes or time.monotonic() > deadline:
                break
    finally:
        response.close()  # Read to its end, its connection has been kept.
    return Answer(response.status, response.headers, bytes(body))


def _pause(attempt: int) -> float:
    """Seconds before the attempt of this number, from 0: none before the first and the second."""
    if attempt < 2:
        return 0.0
    return min(BACKOFF * 2 ** (attempt - 1), LONGEST_BACKOFF) + random.uniform(0, JITTER)


def check_answers(url: str, timeout: float, retries: int) -> None:
    """Waits for a server to answer anything at all, before compute is spent.

    It says so where that takes more than `QUIET_START` seconds, and takes `LONGEST_START` at most.

    Raises:
      UserError: it does not.
    """
    answer = in_background(_first_answer, url, min(timeout, LONGEST_START), retries)
    concurrent.futures.wait([answer], QUIET_START)
    if not answer.done():
        logging.info(
            "Waiting for the scorer %s to answer, for %g seconds at most.",
            *(shown(url), LONGEST_START),
        )
        concurrent.futures.wait([answer], LONGEST_START - QUIET_START)
    try:
        answer.result(0)
    except Exception as error:  # Of an odd address the resolver raises what it likes, too.
        raise UserError(
            f"The scorer {shown(url)} does not answer ({_reason(error)}): start it, or mend the "
            "address."
        ) from error


def _first_answer(url: str, timeout: float, retries: int) -> None:
    """Not all servers know GET: whatever the status, something listens."""
    for attempt in range(retries + 1):
        time.sleep(_pause(attempt))
        try:
            return in_background(_open, "GET", url, timeout).result(timeout).close()
        except (urllib3.exceptions.HTTPError, TimeoutError):
            if attempt == retries:
                raise


def request_scores(
    url: str,
    images: np.ndarray,
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    image_format: str,
    timeout: float,
    retries: int,
) -> Any:
    """One request.

    Args:
      url: of the server.
      images: uint8 [n, H, W, 3].
      prompts, metadata: n each.
      image_format: one of `FORMATS`.
      timeout: seconds, from connecting to the last byte of the answer.
      retries: after a connection that fails or ends, a timeout, or a status that may pass.

    Returns:
      What the server gave as its scores, unchecked.

    Raises:
      ScorerError: no answer after all retries, a final status, or not the protocol's answer.
    """
    question = {
        "format": image_format,
        "shape": images.shape,
        "images": [_encode(image, image_format) for image in images],
        "prompts": list(prompts),
        "metadata": [dict(values) for values in metadata],
    }
    most_bytes = MOST_BYTES + BYTES_AN_IMAGE * len(images)
    ask = functools.partial(
        _ask,
        url,
        timeout,
        most_bytes,
        body=msgpack.packb(question),
        headers={"Content-Type": CONTENT_TYPE, "Accept": CONTENT_TYPE},
    )
    problem, cause = "", None
    for attempt in range(retries + 1):
        time.sleep(_pause(attempt))
        try:
            # The timeout of a socket begins anew with each byte: whatever hangs is given up.
            answer = in_background(ask).result(timeout)
        except (urllib3.exceptions.HTTPError, TimeoutError) as error:
            problem, cause = _reason(error), error
            continue
        if answer.status not in PASSING_STATUSES:
            return _scores(shown(url), answer, most_bytes)
        problem, cause = f"HTTP status {answer.status}: {answer.shown()}", None
    raise ScorerError(
        f"The scorer {shown(url)} has failed {retries + 1} times, last: {problem}."
    ) from cause


def _scores(name: str, answer: Answer, most_bytes: int) -> Any:
    if answer.status != 200:
        place = shown(answer.headers.get("Location", ""))
        to = f" to {place!r}, which is not followed" if place else ""
        raise ScorerError(
            f"The scorer {name} answered with HTTP status {answer.status}{to}: {answer.shown()}."
        )
    if len(answer.body) > most_bytes:
        raise ScorerError(
            f"The scorer {name} answered with more than {most_bytes:,} bytes, which no scores take."
        )
    try:
        # Nothing in it can be larger than it is; what is too deep is an error of msgpack's.
        return msgpack.unpackb(answer.body)["scores"]
    except Exception as error:  # msgpack raises many kinds, ValueError not above all of them.
        raise ScorerError(
            f"The scorer {name} did not answer with a msgpack map that has 'scores' "
            f"({type(error).__name__}), but with {answer.body[:60]!r}."
        ) from error


def _reason(error: Exception) -> str:
    """What was the matter, without urllib3's objects in the text."""
    error = getattr(error, "reason", None) or error
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return "no connection"
    if isinstance(error, (urllib3.exceptions.TimeoutError, TimeoutError)):
        return "no answer within the timeout"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "the connection broke"
    return str(error)
