"""Scores from an HTTP server. The protocol is in docs/rewards_of_your_own.md."""

import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
import urllib3
from PIL import Image

FORMATS = ("png", "raw")
CONTENT_TYPE = "application/msgpack"
# Of a server that is overloaded, restarting or behind a proxy; anything else is final.
PASSING_STATUSES = (408, 425, 429, 500, 502, 503, 504)
MOST_CONNECTIONS = 64
# Seconds: the first retry follows at once, the next after 1, 2, 4, ... and a random part of this.
BACKOFF, LONGEST_BACKOFF, JITTER = 0.5, 60.0, 0.5


class ScorerError(OSError):
    """A scorer outside of the graph has failed for good; the message names it."""


@functools.cache
def _connections() -> urllib3.PoolManager:
    return urllib3.PoolManager(maxsize=MOST_CONNECTIONS)


def _retry(retries: int) -> urllib3.Retry:
    return urllib3.Retry(
        total=retries,
        allowed_methods=None,  # Scoring twice does no harm.
        status_forcelist=PASSING_STATUSES,
        raise_on_status=False,  # The last answer's body says more than urllib3's error.
        backoff_factor=BACKOFF,
        backoff_max=LONGEST_BACKOFF,
        backoff_jitter=JITTER,
        respect_retry_after_header=False,
    )


def _encode(image: np.ndarray, image_format: str) -> bytes:
    if image_format == "raw":
        return image.tobytes()
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def check_answers(url: str, timeout: float, retries: int) -> None:
    """Waits for a server to answer anything at all, before compute is spent.

    Raises:
      ValueError: it does not.
    """
    try:
        # Not all servers know GET: whatever the status, something listens.
        retry = _retry(retries).new(status_forcelist=())
        _connections().request("GET", url, timeout=timeout, retries=retry)
    except urllib3.exceptions.HTTPError as error:
        raise ValueError(
            f"The scorer {url} does not answer ({_reason(error)}): start it, or mend the address."
        ) from error


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
      timeout: seconds to connect, and between two pieces of the answer.
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
    try:
        response = _connections().request(
            "POST",
            url,
            body=msgpack.packb(question),
            headers={"Content-Type": CONTENT_TYPE, "Accept": CONTENT_TYPE},
            timeout=timeout,
            retries=_retry(retries),
        )
    except urllib3.exceptions.HTTPError as error:
        raise ScorerError(
            f"The scorer {url} has failed {retries + 1} times, last: {_reason(error)}."
        ) from error
    if response.status != 200:
        text = response.data[:200].decode(errors="replace")
        may_pass = response.status in PASSING_STATUSES
        what = f"has failed {retries + 1} times, last:" if may_pass else "answered with"
        raise ScorerError(f"The scorer {url} {what} HTTP status {response.status}: {text}.")
    try:
        return msgpack.unpackb(response.data)["scores"]
    except Exception as error:  # msgpack raises many kinds, ValueError not above all of them.
        raise ScorerError(
            f"The scorer {url} did not answer with a msgpack map that has 'scores' "
            f"({type(error).__name__}), but with {response.data[:60]!r}."
        ) from error


def _reason(error: Exception) -> str:
    """What was the matter, without urllib3's objects in the text."""
    error = getattr(error, "reason", None) or error
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return "no connection"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "no answer within the timeout"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "the connection broke"
    return str(error)
