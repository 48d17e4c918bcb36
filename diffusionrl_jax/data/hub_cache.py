"""Looks into huggingface_hub's cache on this machine, and checks its files."""

import hashlib
import pathlib
import re

import huggingface_hub
from absl import logging
from huggingface_hub import constants

from diffusionrl_jax.data.files import write_whole

HUB = "hub"  # What huggingface_hub calls its cache in $HF_HOME.
SLOW_BYTES = 10**9  # So many bytes take some seconds to check.


def cache_folder() -> pathlib.Path:
    """Returns the folder for what is made of the hub's files, where whoever shares them finds it.

    It lies beside huggingface_hub's cache where that is a folder "hub" of a home, as it is unless
    told, and else in it: what is beside a folder that $HF_HUB_CACHE names is not ours to write to.
    """
    cache = pathlib.Path(constants.HF_HUB_CACHE)
    return (cache.parent if cache.name == HUB else cache) / "diffusionrl_jax"


def home(repository: str, kind: str) -> pathlib.Path:
    """Returns the folder of a repository in the cache, whether it is there or not.

    Args:
      repository: the repository, as "owner/name".
      kind: "model" or "dataset".
    """
    name = huggingface_hub.file_download.repo_folder_name(repo_id=repository, repo_type=kind)
    return pathlib.Path(constants.HF_HUB_CACHE) / name


def is_whole(path: pathlib.Path, digest: str = "") -> bool:
    """Returns whether a file is what was published.

    Args:
      path: the file, as it lies in a snapshot: a link to a file that is named by its digest.
      digest: 64 digits of SHA-256, or 40 of git's SHA-1. If empty, the one in the name is taken.
        Without either, nothing is known, and the file is taken for whole.
    """
    if not path.is_file():
        return False
    blob = path.resolve()
    digest = digest or blob.name
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", digest):
        return True
    status = blob.stat()
    seen = f"{blob} {status.st_size} {status.st_mtime_ns}"
    # There is a mark for each place and digest, since several caches may have the same file.
    name = hashlib.sha256(f"{blob} {digest}".encode()).hexdigest()
    mark = cache_folder() / "checked" / name
    if mark.exists() and mark.read_text() == seen:
        return True
    if status.st_size > SLOW_BYTES:
        logging.info("Checking %s, once.", path)
    if _compute_digest(blob, status.st_size, digest) != digest:
        return False
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        write_whole(mark, seen.encode())
    except OSError:  # Where no mark can be written, the file is checked each time.
        logging.debug("No mark at %s", mark, exc_info=True)
    return True


def _compute_digest(path: pathlib.Path, size: int, like: str) -> str:
    """Returns a file's digest, of the kind of the digest that it is to be like."""
    with path.open("rb") as file:
        if len(like) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        started = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        return hashlib.file_digest(file, lambda: started).hexdigest()


def remove_damaged(path: pathlib.Path) -> None:
    """Removes a file together with what it is a link to, and warns of it."""
    logging.warning("%s is damaged, and is removed to be fetched anew.", path)
    for each in (path.resolve(), path):
        each.unlink(missing_ok=True)
