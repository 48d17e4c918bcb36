"""What huggingface_hub raises, told in one line with its mend."""

import errno

import pytest
import requests
from huggingface_hub import errors

from diffusionrl_jax.data import hub_errors

NAME = "xswu/HPSv2"


def answered(status, kind=errors.HfHubHTTPError, told=""):
    response = requests.Response()
    response.status_code = status
    response.headers["X-Error-Message"] = told
    return kind(f"{status} of the hub", response=response)


def missed(cause):
    """As huggingface_hub hides what happened behind what it lacks in its cache."""
    error = errors.LocalEntryNotFoundError("not in the cache")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (answered(401), "shows no such dataset (401"),
        (answered(401, told="Invalid credentials in Authorization header"), "the token that it"),
        (answered(403), "refuses xswu/HPSv2 with 403 (403 of the hub): start the same command"),
        (answered(407), "look at what your token may read (HF_TOKEN), and at the proxy"),
        (
            answered(403, errors.GatedRepoError),
            "is gated on the Hugging Face hub: accept its terms",
        ),
        (answered(404, errors.RepositoryNotFoundError), "check the id; if it is private"),
        (answered(429), "429, too many requests: wait some minutes"),
        (answered(503), "with 503: start the same command again later"),
        (errors.HFValidationError("bad"), "is no folder here, and no id"),
        (OSError(errno.ENOSPC, "full", "/disk/x"), "/disk/x (No space left on device): make room"),
        (OSError(errno.EACCES, "no", "/disk/x"), "/disk/x (Permission denied): make it writable"),
        (FileNotFoundError("has no file"), "has no file"),
    ],
)
def test_what_the_hub_answers_or_the_disk_refuses(error, words, hidden):
    error = missed(error) if hidden else error
    assert not hub_errors.is_unreachable(error)
    message = hub_errors.explain(error, NAME, "dataset")
    assert words in message and "\n" not in message


@pytest.mark.parametrize(
    "error",
    [
        requests.ConnectionError("refused"),
        requests.ReadTimeout("slow"),
        errors.OfflineModeIsEnabled("off"),
    ],
)
def test_a_hub_that_cannot_be_reached(error):
    assert hub_errors.is_unreachable(missed(error))
    found = [(NAME, missed(error)), ("me/unknown", error), (NAME, error)]
    message = hub_errors.explain_unreachable(found)
    assert message.startswith(f"{NAME} (about 2.0 GB), me/unknown: no folder here")
    assert f"can't be reached ({str(error)})" in message and "diffusionrl_jax.fetch" in message


def test_a_download_that_broke_off_goes_on():
    broken = requests.ConnectionError("peer closed\nthe connection.")
    message = hub_errors.explain_download(broken, NAME, "model", "a.pt")
    assert message.startswith(f"The download of a.pt of {NAME} broke off (peer closed): start")
    damaged = hub_errors.DamagedError("arrived damaged")
    assert hub_errors.explain_download(damaged, NAME, "model", "a.pt") == "arrived damaged"
    full = OSError(errno.ENOSPC, "full", "/disk")
    explained = hub_errors.explain(full, NAME, "model")
    assert hub_errors.explain_download(full, NAME, "model", "a.pt") == explained
