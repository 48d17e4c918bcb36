"""How files of the Hugging Face hub travel: by HTTP, never waited for without end, and told of.

To import this sets up huggingface_hub for the whole program.
"""

import contextlib
import functools
import os
import pathlib
import sys
import threading
from collections.abc import Iterator

import huggingface_hub
import requests
from absl import logging
from huggingface_hub import constants
from huggingface_hub.utils import _http

from diffusionrl_jax.data.files import readable_size

TIMEOUT = 30.0  # The seconds in which the hub has to answer.
TOLD_EVERY = 30.0  # The seconds between two lines of progress in a log.


def _session() -> requests.Session:
    """Returns huggingface_hub's own session, in which no request waits for ever for its answer."""
    session = _http._default_backend_factory()
    session.request = functools.partial(session.request, timeout=TIMEOUT)  # As a default.
    return session


huggingface_hub.configure_http_backend(_session)
# Of what its other protocol for large files, Xet, has begun, nothing is kept where it breaks off.
if "HF_HUB_DISABLE_XET" not in os.environ:
    constants.HF_HUB_DISABLE_XET = True


@contextlib.contextmanager
def progress(arriving: pathlib.Path, name: str, size: int) -> Iterator[None]:
    """Logs how much of a file has arrived, where there is no terminal for huggingface_hub's bar.

    Args:
      arriving: where huggingface_hub writes what has arrived.
      name: the file's name, for the log.
      size: its bytes.
    """
    if sys.stderr.isatty():
        yield
        return
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(TOLD_EVERY):
            with contextlib.suppress(FileNotFoundError):  # It has not begun, or has just ended.
                arrived = readable_size(arriving.stat().st_size)
                logging.info("%s of %s of %s have arrived.", arrived, readable_size(size), name)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
