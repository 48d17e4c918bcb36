"""Has scorers on the host score an iteration's images, for the compiled program to take as inputs.

Every process has its own images scored, and the scores become arrays over all devices.
"""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusionrl_jax.distributed.mesh import batch_sharding, local_rows
from diffusionrl_jax.distributed.processes import gather
from diffusionrl_jax.rewards import Reward
from diffusionrl_jax.rewards.background import in_background
from diffusionrl_jax.rewards.host_reward import (
    HostReward,
    Questions,
    ScorerError,
    host_rewards,
)


@dataclasses.dataclass(frozen=True)
class PendingScores:
    """Scores that have been asked for and may not have arrived yet.

    Attributes:
      mesh: the devices over which the scores will be split.
      batch: the number of images that each reward scores.
      scorers: for every reward, its scorers by the input field that they fill.
      answers: for every reward and input field, a future of the rows that this process holds and of
        their scores.
    """

    mesh: Mesh
    batch: int
    scorers: Sequence[Mapping[str, HostReward]]
    answers: Sequence[Mapping[str, concurrent.futures.Future]]

    def result(self, refuse_unscored: bool = True) -> tuple[dict[str, jax.Array], ...]:
        """Waits for all scores.

        Args:
          refuse_unscored: whether a batch in which nothing has a score is an error.

        Returns:
          For every reward, its input fields, float32 [batch], split over the devices.

        Raises:
          ScorerError: a scorer failed; or, if that is refused, it gave no finite score at all, or
            no image has a finite score from each of a reward's several scorers. It is raised in all
            processes alike.
        """
        failure, columns, names, any_scored = None, [], [], []
        for scorers, answers in zip(self.scorers, self.answers, strict=True):
            scored = np.full(self.batch, True)
            for field, answer in answers.items():
                column = np.full(self.batch, np.nan, np.float32)
                if (error := answer.exception()) is not None:
                    failure = failure or _as_scorer_error(scorers[field].shown, error)
                else:
                    rows, scores = answer.result()
                    column[rows] = scores
                scored &= np.isfinite(column)
                columns.append(column)
                names.append(scorers[field].shown)
                any_scored.append(np.isfinite(column).any())
            if len(answers) > 1:
                names.append(" and ".join(scorer.shown for scorer in scorers.values()))
                any_scored.append(scored.any())
        if not columns:
            return tuple({} for _ in self.answers)
        told = gather(np.array([failure is None, *any_scored]))
        if failure is not None:
            raise failure
        if not told[:, 0].all():
            raise ScorerError("A scorer has failed in another process, whose log names it.")
        for name, any_finite in zip(names, np.any(told[:, 1:], axis=0), strict=True):
            if refuse_unscored and not any_finite:
                raise ScorerError(
                    f"The scorer {name} gave no finite score for any of {self.batch} images."
                )
        sharding = batch_sharding(self.mesh)
        place = lambda column: jax.make_array_from_callback(
            column.shape, sharding, lambda index: column[index]
        )
        columns = iter(columns)
        return tuple({field: place(next(columns)) for field in answers} for answers in self.answers)


def _as_scorer_error(scorer: str, error: BaseException) -> ScorerError:
    """Returns the error if it is a `ScorerError`, and otherwise one that names its cause."""
    if isinstance(error, ScorerError):
        return error
    wrapped = ScorerError(f"Asking the scorer {scorer} raised {type(error).__name__}: {error}.")
    wrapped.__cause__ = error
    return wrapped


@functools.partial(jax.jit, static_argnums=2)
def _as_bytes(images: jax.Array, index: jax.Array, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """Returns one reward's images as uint8, and which had finite numbers only, bool [batch]."""
    images = images[index]
    finite = jnp.isfinite(images).all((1, 2, 3))
    images = jnp.nan_to_num(jnp.clip(images, 0, 1), nan=0.0)
    as_bytes = jnp.round(images * 255).astype(jnp.uint8)
    return jax.lax.with_sharding_constraint((as_bytes, finite), batch_sharding(mesh))


def start_scoring(
    rewards: Sequence[Reward],
    images: jax.Array | None,
    questions: Sequence[Questions],
    mesh: Mesh,
) -> PendingScores:
    """Brings images to the host and asks their scorers about them, in the background.

    Args:
      rewards: the rewards. One without a part on the host gets no fields.
      images: float32 [rewards, batch, height, width, 3] in [0, 1], split over the batch. An image
        with a number that is not finite gets the score NaN. None where they are decoded a
        microbatch at a time, which no reward with a part on the host can have.
      questions: for each reward, what its scorers are told about all images of its batch. It is not
        read, and may be missing, where no reward has a part on the host.
      mesh: the devices over which the images are split.

    Returns:
      The scores, to be waited for.
    """
    scorers = [host_rewards(reward) for reward in rewards]

    def ask(scorer: HostReward, local: concurrent.futures.Future, asked: Questions) -> Any:
        rows, pictures, finite = local.result()
        # A picture that was not finite must not get the score of what it was made into.
        return rows, np.where(finite, scorer.score(pictures, asked.take(rows)), np.nan)

    answers = []
    for index, fields in enumerate(scorers):
        answers.append({})
        if fields:
            assert images is not None  # `Scoring.decodes_to_score` sees to it.
            # All processes must start programs in the same order: here. The rest may take its time.
            local = in_background(local_rows, *_as_bytes(images, index, mesh))
            for field, scorer in fields.items():
                answers[-1][field] = in_background(ask, scorer, local, questions[index])
    count = 0 if images is None else images.shape[1]
    return PendingScores(mesh, count, scorers, answers)
