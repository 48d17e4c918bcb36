"""Draws and scores the same prompts with the same noise for any checkpoint."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from PIL import Image

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.prompt_sources import make_prompts
from diffusionrl_jax.data.prompts import prompt_batch
from diffusionrl_jax.diffusion.pipeline import Policy
from diffusionrl_jax.diffusion.sampler import Sampler
from diffusionrl_jax.distributed.mesh import (
    batch_sharding,
    frozen_sharding,
    gather_parameters,
    place,
    replicated,
)
from diffusionrl_jax.distributed.microbatch import largest_divisor
from diffusionrl_jax.experiments import checks
from diffusionrl_jax.experiments.experiment import OpenedScorer
from diffusionrl_jax.learning.host_scoring import start_scoring
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_to_image import warn_of_cut
from diffusionrl_jax.monitoring.images import image_grid
from diffusionrl_jax.rewards import Reward, scoring
from diffusionrl_jax.rewards.host_reward import Questions, host_rewards
from diffusionrl_jax.rewards.scorers import load_scorer, prepare

SHOWN_IMAGES = 8  # How many images of each set are usually kept to be looked at.

# Is shown a set's name, a slice of its images, and these, float32 [k, height, width, 3] in [0, 1].
Look = Callable[[str, slice, np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of one checkpoint.

    Attributes:
      images: set -> a few images to look at, float32 [k, height, width, 3] in [0, 1]; see
        `Evaluator.shown`.
      scores: set -> scorer -> float32 [n], the score of each image.
    """

    images: dict[str, np.ndarray]
    scores: dict[str, dict[str, np.ndarray]]

    def means(self) -> dict[str, float]:
        """Returns the mean over all finite scores, by "set/scorer"; NaN if none is finite."""
        finite = {
            f"{name}/{scorer}": values[np.isfinite(values)]
            for name, scores in self.scores.items()
            for scorer, values in scores.items()
        }
        return {
            name: float(values.mean()) if values.size else math.nan
            for name, values in finite.items()
        }


def evenly(count: int, limit: int) -> np.ndarray:
    """Returns at most `limit` of `count` indices, evenly spaced."""
    chosen = min(count, limit)
    return np.arange(chosen) * count // chosen


def evaluation_prompts(config: Config) -> dict[str, list[str]]:
    """Returns the prompt of each image of each of a config's evaluation sets.

    Args:
      config: see `experiments/config.py`.

    Raises:
      UserError, OSError: there are no such prompts, or one is broken.
    """
    evaluation, found = config.evaluation, {}
    for name, chosen in evaluation.sets.items():
        source = make_prompts(chosen.prompts, evaluation.seed)
        found[name] = prompt_batch(source, 0, chosen.images, chosen.group_size)
    return found


class Evaluator:
    """Draws and scores the config's evaluation sets, a bounded number of images at a time.

    Args:
      policy: the model, with its chain and devices.
      config: the experiment, whose `evaluation`, `sampler` and `microbatch` are read; see
        `experiments/config.py`.
      opened: scorers that are on the mesh already, so that they are not put there twice.
      shown: how many images of each set an `Evaluation` keeps, at most.

    Attributes:
      prompts: set -> the prompt of each image.
      shown: set -> the indices of the images that an `Evaluation` keeps, evenly spaced.

    Raises:
      UserError: a set does not divide over the devices, or an unknown scorer is named.
    """

    def __init__(
        self,
        policy: Policy,
        config: Config,
        opened: Sequence[OpenedScorer] = (),
        shown: int = SHOWN_IMAGES,
    ):
        self.config = config.evaluation
        self.policy = policy
        checks.check_evaluation(config, policy.mesh)
        mesh, sets = policy.mesh, self.config.sets
        # Each set's images divide over the devices.
        largest = max((chosen.images for chosen in sets.values()), default=mesh.size)
        self._at_once = min(config.microbatch.sample * mesh.size or largest, largest)
        self._scored_at_once = config.microbatch.score * mesh.size
        self._replicate = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
        self.sampler = Sampler(policy, config.sampler, self._at_once, config.microbatch.decode)
        self.prompts = evaluation_prompts(config)
        self.shown: dict[str, np.ndarray] = {}
        self._scorers: dict[str, dict[str, tuple]] = {}
        loaded = {}
        for name, chosen in sets.items():
            different = list(dict.fromkeys(self.prompts[name]))
            warn_of_cut(policy.model, different, f"config.evaluation.sets.{name}.prompts")
            self.shown[name] = evenly(chosen.images, shown)
            self._scorers[name] = {}
            for scorer in chosen.scorers:
                key = scorer, chosen.group_size
                if key not in loaded:
                    described = self.config.scorers[scorer]
                    reward, params = _find(opened, described, chosen.group_size) or load_scorer(
                        described, chosen.group_size
                    )
                    checks.check_reward(
                        f"config.evaluation.scorers.{scorer}",
                        described,
                        (reward, params),
                        policy.model.image_shape,
                        self.prompts[name][: 2 * chosen.group_size],
                    )
                    params = place(params, frozen_sharding(mesh, params, config.mesh.split_frozen))
                    score = lambda params, images, inputs, reward=reward: scoring.score(
                        reward, gather_parameters(params, mesh), images, inputs
                    )
                    loaded[key] = reward, jax.jit(score, out_shardings=replicated(mesh)), params
                reward, score, params = loaded[key]
                inputs = prepare(reward, self.prompts[name])
                self._scorers[name][scorer] = reward, score, params, inputs

    def _parts(self, name: str, images: int, at_once: int) -> Iterator[slice]:
        """Yields equal parts of a set's images, each of whole groups and over all devices.

        They have at most `at_once` images, or as few as possible if that is too few.
        """
        unit = math.lcm(self.policy.mesh.size, self.config.sets[name].group_size)
        size = unit * largest_divisor(images // unit, max(1, at_once // unit))
        return (slice(start, start + size) for start in range(0, images, size))

    def _blocks(self, name: str) -> Iterator[slice]:
        """Yields the parts of a set that are drawn at a time."""
        return self._parts(name, self.config.sets[name].images, self._at_once)

    def _score(self, name: str, block: slice, images: np.ndarray) -> dict[str, np.ndarray]:
        """Scores a block of a set's images: scorer -> float32 [images]."""
        scorers, sharding = self._scorers[name], batch_sharding(self.policy.mesh)
        inputs = {
            scorer: {field: rows[block] for field, rows in rows_of_set.items()}
            | self._from_host(reward, name, block, images)
            for scorer, (reward, _, _, rows_of_set) in scorers.items()
        }
        scores = {scorer: [] for scorer in scorers}
        for part in self._parts(name, len(images), self._scored_at_once or len(images)):
            on_devices = place(images[part], sharding)
            for scorer, (_, score, params, _) in scorers.items():
                rows = {field: values[part] for field, values in inputs[scorer].items()}
                scored = score(params, on_devices, place(rows, sharding))
                scores[scorer].append(np.asarray(scored))
        return {scorer: np.concatenate(parts) for scorer, parts in scores.items()}

    def _from_host(
        self, reward: Reward, name: str, block: slice, images: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the scores of a block by a reward's scorers on the host, if it has any."""
        if not host_rewards(reward):
            return {}
        mesh, prompts = self.policy.mesh, self.prompts[name][block]
        metadata = [{"set": name, "index": block.start + n} for n in range(len(prompts))]
        placed = place(images[None], batch_sharding(mesh, axis=1))
        pending = start_scoring([reward], placed, [Questions(prompts, metadata)], mesh)
        # Every process asks about its own images, and then gets the scores of all. A block is a
        # part of a set, and may be of pictures that have no score.
        scores = pending.result(refuse_unscored=False)[0]
        return jax.tree.map(np.asarray, self._replicate(scores))

    def open_scorers(self) -> Iterator[tuple[Reward, Parameters]]:
        """Yields the sets' rewards with their parameters, which are on the mesh."""
        for scorers in self._scorers.values():
            for reward, _, params, _ in scorers.values():
                yield reward, params

    def _evaluate(self, picture: Callable[[str, int, slice], np.ndarray], look: Look) -> Evaluation:
        """Scores every set's pictures, which a function of (set, its number, block) draws."""
        images, scores = {}, {}
        for index, name in enumerate(self.prompts):
            shown, parts = [], []
            for block in self._blocks(name):
                drawn = picture(name, index, block)
                look(name, block, drawn)
                parts.append(self._score(name, block, drawn))
                inside = (self.shown[name] >= block.start) & (self.shown[name] < block.stop)
                shown.append(drawn[self.shown[name][inside] - block.start])
            images[name] = np.concatenate(shown)
            scores[name] = {
                scorer: np.concatenate([part[scorer] for part in parts])
                for scorer in self._scorers[name]
            }
        return Evaluation(images, scores)

    def __call__(
        self,
        params: Mapping[str, Parameters],
        sampler: Sampler | None = None,
        look: Look = lambda name, block, images: None,
    ) -> Evaluation:
        """Draws and scores every set.

        Args:
          params: the checkpoint's parameters by network: the denoiser's, "vae" and "text_encoder".
          sampler: the sampler of a checkpoint whose networks differ from the policy's; None means
            that of the policy.
          look: is shown all pictures, a block of a set at a time.
        """
        sampler = sampler or self.sampler
        return self._evaluate(
            lambda name, index, block: sampler(
                params, self.prompts[name][block], self.config.seed + index, block.start
            ),
            look,
        )

    def logged(self, evaluation: Evaluation) -> tuple[dict[str, float], dict[str, Image.Image]]:
        """Returns what a run logs of an evaluation of its parameters.

        Returns:
          `Evaluation.means` with "best", from `best_score`, and a picture of each set.
        """
        means = evaluation.means()
        grids = {
            name: image_grid(images, len(images), scale=2)
            for name, images in evaluation.images.items()
        }
        return means | {"best": best_score(means, self.config.best)}, grids

    def score_pictures(self, pictures: Mapping[str, np.ndarray]) -> dict[str, dict]:
        """Scores given pictures of the sets' prompts.

        Args:
          pictures: set -> uint8 [n, height, width, 3], in the order of `prompts`. Sets may be
            missing.

        Returns:
          Set -> scorer -> float32 [n].
        """
        scores = {}
        for name, images in pictures.items():
            parts = [
                self._score(name, block, images[block].astype(np.float32) / 255)
                for block in self._blocks(name)
            ]
            scores[name] = {
                scorer: np.concatenate([part[scorer] for part in parts])
                for scorer in self._scorers[name]
            }
        return scores


def _find(opened: Sequence[OpenedScorer], scorer: Config, group_size: int):
    """Returns the reward and its parameters if a scorer is open already, and None otherwise."""
    for one in opened:
        if one.group_size == group_size and one.scorer.to_dict() == scorer.to_dict():
            return one.reward, one.params
    return None


def best_score(means: Mapping[str, float], best: Config) -> float:
    """Computes the score by which the best checkpoint is chosen: a weighted sum of means.

    Args:
      means: the means, from `Evaluation.means`.
      best: "set/scorer" -> weight.

    Returns:
      The sum; NaN if `best` is empty.
    """
    if not best:
        return math.nan
    return sum(weight * means[name] for name, weight in best.items())
