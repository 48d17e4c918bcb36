"""Asks an HTTP server for scores. The protocol is in docs/rewards_of_your_own.md.

The server is not trusted: an answer is limited in time and in bytes, only msgpack is unpacked, no
redirection is followed, and only printable characters of it are shown.
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
# Statuses of a server that is overloaded, restarting or behind a proxy. Any other is final.
PASSING_STATUSES = (408, 425, 429, 500, 502, 503, 504)
MOST_CONNECTIONS = 64
# In seconds. The first retry follows at once, the next after 1, 2, 4, ... and a random part of
# JITTER.
BACKOFF, LONGEST_BACKOFF, JITTER = 0.5, 60.0, 0.5
# The limit of an answer. A score takes 9 bytes, and the rest may be anything.
MOST_BYTES, BYTES_AN_IMAGE = 2**20, 16
PIECE = 2**16
# In seconds: how long a server may take for its first answer, and when the user is told to wait.
LONGEST_START, QUIET_START = 60.0, 2.0
SHOWN = 200  # How many characters of an answer.


class ScorerError(OSError):
    """Raised where a scorer outside of the graph has failed for good; the message names it."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A server's answer to one request.

    Attributes:
      status: the HTTP status.
      headers: the headers by name.
      body: the body as it was sent, cut off behind the limit.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def shown(self) -> str:
        """Returns the beginning of the body in printable characters, without terminal escapes."""
        text = self.body[:SHOWN].decode(errors="replace")
        return "".join(character if character.isprintable() else " " for character in text)


def is_address(scorer: str) -> bool:
    """Returns whether a scorer is the address of a server rather than the name of a function."""
    return scorer.lower().startswith(("http://", "https://"))


def check_address(url: str) -> None:
    """Refuses an address that holds a password, without showing it.

    Raises:
      UserError: the address has a user or a password.
    """
    address, _, _ = url.partition("?")
    if "@" in address:
        raise UserError(
            f"The scorer {shown(url)} has a user or a password in its address, which config.json "
            "would hold for all to read: leave it out, and keep the server in a private network."
        )


def shown(scorer: str) -> str:
    """Returns what messages call a scorer: a function's name, or an address without secrets."""
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
    """Encodes an image, uint8 [height, width, 3], in one of `FORMATS`."""
    if image_format == "raw":
        return image.tobytes()
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _open(method: str, url: str, timeout: float, **request) -> urllib3.BaseHTTPResponse:
    """Sends a request, and reads no more than the answer's headers."""
    return _connections().request(
        method, url, timeout=timeout, retries=False, preload_content=False, **request
    )


def _ask(url: str, timeout: float, most_bytes: int, **request) -> Answer:
    """Makes one request. The thread that it runs in may be given up."""
    deadline = time.monotonic() + timeout
    response, body = _open("POST", url, timeout, **request), bytearray()
    try:
        while piece := response.read1(PIECE, decode_content=False):  # Nothing is decompressed.
            body += piece
            if len(body) > most_bytes or time.monotonic() > deadline:
                break
    finally:
        response.close()  # If it was read to its end, the connection is kept.
    return Answer(response.status, response.headers, bytes(body))


def _pause(attempt: int) -> float:
    """Returns the seconds before an attempt, numbered from 0; none before the first two."""
    if attempt < 2:
        return 0.0
    return min(BACKOFF * 2 ** (attempt - 1), LONGEST_BACKOFF) + random.uniform(0, JITTER)


def check_answers(url: str, timeout: float, retries: int) -> None:
    """Waits for a server to answer anything at all, before compute is spent.

    It tells the user if that takes more than `QUIET_START` seconds, and waits `LONGEST_START`
    seconds at most.

    Args:
      url: the server's address.
      timeout: the seconds that one attempt may take.
      retries: how often a failed attempt is repeated.

    Raises:
      UserError: the server does not answer.
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
    except Exception as error:  # For an odd address the resolver may raise anything.
        raise UserError(
            f"The scorer {shown(url)} does not answer ({_reason(error)}): start it, or mend the "
            "address."
        ) from error


def _first_answer(url: str, timeout: float, retries: int) -> None:
    """Asks with GET until the server answers.

    Not all servers know GET, but whatever the status is, something listens.
    """
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
    """Asks a server for the scores of some images, in one request and its retries.

    Args:
      url: the server's address.
      images: uint8 [n, height, width, 3].
      prompts: the n prompts.
      metadata: the n images' metadata.
      image_format: one of `FORMATS`.
      timeout: the seconds from connecting to the last byte of the answer.
      retries: how often a request is repeated after a connection that fails or ends, a timeout, or
        a status that may pass.

    Returns:
      What the server gave as its scores, unchecked.

    Raises:
      ScorerError: there is no answer after all retries, the status is final, or the answer does not
        follow the protocol.
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
            # A socket's timeout begins anew with each byte, so a request that hangs is given up
            # here.
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
    """Returns the scores in an answer, or raises a ScorerError that says what is wrong with it."""
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
        # An answer holds no more than its bytes, and msgpack refuses what is nested too deeply.
        return msgpack.unpackb(answer.body)["scores"]
    except Exception as error:  # msgpack raises many kinds, not all of them ValueErrors.
        raise ScorerError(
            f"The scorer {name} did not answer with a msgpack map that has 'scores' "
            f"({type(error).__name__}), but with {answer.body[:60]!r}."
        ) from error


def _reason(error: Exception) -> str:
    """Returns what was the matter, without urllib3's objects in the text."""
    error = getattr(error, "reason", None) or error
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return "no connection"
    if isinstance(error, (urllib3.exceptions.TimeoutError, TimeoutError)):
        return "no answer within the timeout"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "the connection broke"
    return str(error)
