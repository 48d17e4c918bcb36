"""A reward that is not in JAX: a Python function, or an HTTP server."""

import concurrent.futures
import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.rewards import http_scorer
from diffusionrl_jax.rewards.background import in_background
from diffusionrl_jax.rewards.http_scorer import ScorerError
from diffusionrl_jax.rewards.imports import resolve
from diffusionrl_jax.rewards.weighted_sum import SEPARATOR, WeightedSum

SCORES = "scores"
IMAGES_PER_REQUEST = 16


@dataclasses.dataclass(frozen=True)
class Questions:
    """What the scorers on the host are told about a batch of images.

    Attributes:
      prompts: one prompt for each image.
      metadata: for each image, strings and numbers by name.
    """

    prompts: Sequence[str]
    metadata: Sequence[Mapping[str, Any]]

    def take(self, rows: Sequence[int]) -> "Questions":
        """Returns the questions about some of the images."""
        return Questions([self.prompts[r] for r in rows], [self.metadata[r] for r in rows])


@dataclasses.dataclass(frozen=True)
class HostReward:
    """The reward whose scores are computed outside of the graph, on the host or anywhere.

    In the graph they are an input like any other, "scores". `learning/host_scoring.py` asks for
    them once the images are there.

    Attributes:
      scorer: "package.module:function", or "http://..." or "https://...", a server. The function
        takes (images uint8 [n, height, width, 3], prompts list of str, metadata list of dict),
        returns n numbers, and is never called twice at the same time.
      images_per_call: how many images a call or a request has at most; 0 means all that this
        process has.
      concurrent_requests: how many requests are made at the same time at most.
      timeout: the seconds that a function's call may take, or a request until the last byte of its
        answer.
      retries: how often a request is repeated. A function is called once.
      image_format: the format of images in a request, "png" or "raw".

    Raises:
      UserError: a number is out of range, the format is unknown, or the address has a password.
    """

    has_gradient: ClassVar[bool] = False

    scorer: str
    images_per_call: int = 0
    concurrent_requests: int = 8
    timeout: float = 120.0
    retries: int = 5
    image_format: str = "png"

    def __post_init__(self):
        http_scorer.check_address(self.scorer)
        lowest = {"images_per_call": 0, "concurrent_requests": 1, "timeout": 1e-3, "retries": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise UserError(
                    f"host_reward {self.shown}: {name}={getattr(self, name)} must be at least "
                    f"{least}."
                )
        if self.image_format not in http_scorer.FORMATS:
            raise UserError(
                f"host_reward {self.shown}: image_format={self.image_format!r} must be one of "
                f"{http_scorer.FORMATS}."
            )

    @property
    def shown(self) -> str:
        """What messages call the scorer: see `http_scorer.shown`."""
        return http_scorer.shown(self.scorer)

    @classmethod
    def load(cls, path: str, **options) -> tuple["HostReward", dict]:
        """Finds the function, or waits for the server to answer.

        Args:
          path: the scorer.
          **options: the other fields. Requests have 16 images unless `images_per_call` is given.

        Returns:
          The reward, and no parameters.

        Raises:
          UserError: the function cannot be imported, or the server does not answer.
        """
        if http_scorer.is_address(path):
            reward = cls(path, **{"images_per_call": IMAGES_PER_REQUEST, **options})
            http_scorer.check_answers(path, reward.timeout, reward.retries)
        else:
            reward = cls(path, **options)
            _function(path)
        return reward, {}

    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns nothing, since the device does not need the prompts."""
        del prompts
        return {}

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Returns the scores that were asked for, float32 [n]."""
        del params, images
        return inputs[SCORES]

    def score(self, images: np.ndarray, questions: Questions) -> np.ndarray:
        """Asks the scorer, and returns when all images are scored.

        Args:
          images: uint8 [n, height, width, 3], with n at least 1.
          questions: the questions about the n images.

        Returns:
          float32 [n]; NaN where the scorer gave None or NaN.

        Raises:
          ScorerError: the scorer fails, is too late, or gives anything but n numbers.
        """
        size = self.images_per_call or len(images)
        parts = [range(n, min(n + size, len(images))) for n in range(0, len(images), size)]
        ask = self._request if http_scorer.is_address(self.scorer) else self._call
        limit = threading.BoundedSemaphore(self.concurrent_requests)

        def one(rows):
            with limit:
                scores = ask(images[rows.start : rows.stop], questions.take(rows))
            return check_scores(self.shown, scores, len(rows))

        answers = [in_background(one, rows) for rows in parts]
        return np.concatenate([answer.result() for answer in answers])

    def _request(self, images: np.ndarray, questions: Questions) -> Any:
        return http_scorer.request_scores(
            self.scorer,
            images,
            questions.prompts,
            questions.metadata,
            self.image_format,
            self.timeout,
            self.retries,
        )

    def _call(self, images: np.ndarray, questions: Questions) -> Any:
        function = _function(self.scorer)
        with function.lock:
            # A call that was given up may still run.
            if function.given_up is not None:
                concurrent.futures.wait([function.given_up], self.timeout)
                if not function.given_up.done():
                    raise self._late()
                function.given_up = None
            # The function gets copies of its own, so that whatever it writes there, and however
            # late, changes nothing elsewhere.
            answer = in_background(
                function.call,
                images.copy(),
                list(questions.prompts),
                list(map(dict, questions.metadata)),
            )
            try:
                return answer.result(self.timeout)
            except concurrent.futures.TimeoutError as error:
                if answer.done():  # The error is the function's own.
                    raise self._failed(error) from error
                function.given_up = answer
                raise self._late() from None
            except BaseException as error:  # Even sys.exit must not end the run unsaved.
                raise self._failed(error) from error

    def _late(self) -> ScorerError:
        return ScorerError(
            f"The scorer {self.shown} has not returned within {self.timeout:g} seconds."
        )

    def _failed(self, error: BaseException) -> ScorerError:
        return ScorerError(f"The scorer {self.shown} raised {type(error).__name__}: {error}.")


@dataclasses.dataclass
class _Function:
    """A function, and what keeps it from being called twice at the same time.

    Attributes:
      call: the function.
      lock: whoever calls the function holds it, until there is an answer or none in time.
      given_up: the last call that had no answer in time, if it may still run.
    """

    call: Callable
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    given_up: concurrent.futures.Future | None = None


@functools.cache
def _function(name: str) -> _Function:
    """Imports a function."""
    function = resolve(name)
    if not callable(function):
        raise UserError(f"host_reward {name} is a {type(function).__name__}, not a function.")
    return _Function(function)


def check_scores(scorer: str, scores: Any, count: int) -> np.ndarray:
    """Returns a scorer's answer as float32 [count], with None as NaN.

    Args:
      scorer: what errors call the scorer.
      scores: the answer.
      count: how many images were asked about.

    Raises:
      ScorerError: the answer is anything but that many numbers.
    """
    refusal = None
    try:
        values = np.asarray(scores)
        if values.dtype == object:
            values = np.array([np.nan if value is None else value for value in values])
        # JAX's issubdtype also knows bfloat16.
        is_numeric = jnp.issubdtype(values.dtype, np.number) and not np.iscomplexobj(values)
    # A tensor may raise anything when it refuses to become an array.
    except Exception as error:
        is_numeric, refusal = False, error
    if not is_numeric:
        because = f" ({refusal})" if refusal else ""
        raise ScorerError(
            f"The scorer {scorer} gave no list of numbers for {count} images, but "
            f"{str(scores)[:80]}{because}."
        ) from refusal
    if values.shape != (count,):
        raise ScorerError(
            f"The scorer {scorer} gave scores of shape {values.shape} for {count} images: it must "
            "give one number an image."
        )
    return values.astype(np.float32)


def host_rewards(reward: Any) -> dict[str, HostReward]:
    """Returns the scorers on the host of a reward, by the input field that each fills."""
    if isinstance(reward, HostReward):
        return {SCORES: reward}
    if isinstance(reward, WeightedSum):
        return {
            f"{name}{SEPARATOR}{field}": host
            for name, part in reward.rewards.items()
            for field, host in host_rewards(part).items()
        }
    return {}
