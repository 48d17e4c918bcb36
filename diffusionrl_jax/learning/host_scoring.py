"""Asks the scorers on the host for what the graph then takes as inputs.

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

from diffusionrl_jax.distributed.mesh import batch_sharding
from diffusionrl_jax.distributed.processes import gather
from diffusionrl_jax.rewards import Reward
from diffusionrl_jax.rewards.host_reward import (
    HostReward,
    Questions,
    ScorerError,
    host_rewards,
    in_background,
)


@dataclasses.dataclass(frozen=True)
class PendingScores:
    """Scores that have been asked for.

    Attributes:
      mesh: over which they will be sharded.
      batch: number of images of each reward.
      scorers: of every reward, input field -> its scorer.
      answers: of every reward, input field -> this process' rows and their scores.
    """

    mesh: Mesh
    batch: int
    scorers: Sequence[Mapping[str, HostReward]]
    answers: Sequence[Mapping[str, concurrent.futures.Future]]

    def result(self) -> tuple[dict[str, jax.Array], ...]:
        """Waits for all of them: of every reward, the input fields float32 [batch], sharded.

        Raises:
          ScorerError: a scorer failed, or gave no finite score at all; in every process alike.
        """
        failure, columns, names = None, [], []
        for scorers, answers in zip(self.scorers, self.answers, strict=True):
            for field, answer in answers.items():
                column = np.full(self.batch, np.nan, np.float32)
                try:
                    rows, scores = answer.result()
                    column[rows] = scores
                except ScorerError as error:
                    failure = failure or error
                columns.append(column)
                names.append(scorers[field].scorer)
        if not columns:
            return tuple({} for _ in self.answers)
        told = gather(np.array([failure is None, *(np.isfinite(c).any() for c in columns)]))
        if failure is not None:
            raise failure
        if not told[:, 0].all():
            raise ScorerError("A scorer has failed in another process, whose log names it.")
        for name, any_finite in zip(names, told[:, 1:].any(axis=0), strict=True):
            if not any_finite:
                raise ScorerError(
                    f"The scorer {name} gave no finite score for any of {self.batch} images."
                )
        sharding = batch_sharding(self.mesh)
        place = lambda column: jax.make_array_from_callback(
            column.shape, sharding, lambda index: column[index]
        )
        columns = iter(columns)
        return tuple({field: place(next(columns)) for field in answers} for answers in self.answers)


@functools.partial(jax.jit, static_argnums=2)
def _as_bytes(images: jax.Array, index: jax.Array, mesh: Mesh) -> jax.Array:
    images = jnp.nan_to_num(jnp.clip(images[index], 0, 1), nan=0.0)
    as_bytes = jnp.round(images * 255).astype(jnp.uint8)
    return jax.lax.with_sharding_constraint(as_bytes, batch_sharding(mesh))


def _local_rows(images: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Places in the batch of the images that this process has, ascending, and the images."""
    shards = {shard.index[0].start or 0: shard.data for shard in images.addressable_shards}
    parts = [(start, np.asarray(shards[start])) for start in sorted(shards)]
    rows = np.concatenate([start + np.arange(len(part)) for start, part in parts])
    return rows, np.concatenate([part for _, part in parts])


def start_scoring(
    rewards: Sequence[Reward],
    images: jax.Array,
    questions: Sequence[Questions],
    mesh: Mesh,
) -> PendingScores:
    """Brings images to the host and asks their scorers, in the background.

    Args:
      rewards: any; those without a part on the host get no fields.
      images: float32 [rewards, batch, H, W, 3] in [0, 1], sharded over the batch.
      questions: of each reward, about all images of its batch; of no account, and may lack, where
        no reward has a part on the host.
      mesh: the images'.
    """
    scorers = [host_rewards(reward) for reward in rewards]

    def ask(scorer: HostReward, local: concurrent.futures.Future, asked: Questions) -> Any:
        rows, pictures = local.result()
        return rows, scorer.score(pictures, asked.take(rows))

    answers = []
    for index, fields in enumerate(scorers):
        answers.append({})
        if fields:
            # Programs start here, in the same order in all processes; the rest may take its time.
            local = in_background(_local_rows, _as_bytes(images, index, mesh))
            for field, scorer in fields.items():
                answers[-1][field] = in_background(ask, scorer, local, questions[index])
    return PendingScores(mesh, images.shape[1], scorers, answers)
