"""Draws and scores the same prompts with the same noise for any checkpoint."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from diffusionrl_jax.data.prompts import prompt_batch
from diffusionrl_jax.diffusion.rollout import conditions, rollout
from diffusionrl_jax.distributed.mesh import batch_sharding, check_batch, replicated
from diffusionrl_jax.distributed.microbatch import map_microbatches, microbatch_count
from diffusionrl_jax.experiment import Policy, load_scorer, make_prompts
from diffusionrl_jax.models.stable_diffusion import Parameters


class Sampler:
    """Draws images from prompts; the noise depends on the seed and the image's index alone.

    Args:
      policy: the model.
      sampler: config fields eta and guidance_scale.
      microbatch: images per device at a time; 0 is all at once.
    """

    def __init__(self, policy: Policy, sampler: ml_collections.ConfigDict, microbatch: int = 0):
        self.policy = policy
        model = policy.model

        def draw(params, ids, empty_ids, indices, seed):
            key = jax.random.key(seed)
            empty = model.encode_text(params["text_encoder"], empty_ids[None])[0]

            def some(arguments):
                ids, indices = arguments
                trajectory = rollout(
                    model,
                    policy.schedule,
                    params["unet"],
                    conditions(
                        model.encode_text(params["text_encoder"], ids),
                        empty,
                        sampler.guidance_scale,
                    ),
                    jax.vmap(lambda index: jax.random.fold_in(key, index))(indices),
                    eta=sampler.eta,
                    guidance_scale=sampler.guidance_scale,
                )
                return model.decode(params["vae"], trajectory.latents[:, -1])

            count = microbatch_count(len(ids), microbatch, policy.mesh.size)
            return map_microbatches(some, (ids, indices), count, policy.mesh)

        self._draw = jax.jit(draw, out_shardings=batch_sharding(policy.mesh))

    def __call__(self, unet_params: Parameters, prompts: list[str], seed: int) -> jax.Array:
        """Images of prompts: float32 [n, height, width, 3] in [0, 1].

        Args:
          unet_params: of the checkpoint.
          prompts: any number; filled up to a multiple of the devices.
          seed: of the noise.
        """
        policy = self.policy
        count = len(prompts)
        padded = prompts + [""] * (-count % policy.mesh.size)
        sharding = batch_sharding(policy.mesh)
        images = self._draw(
            policy.params | {"unet": unet_params},
            jax.device_put(policy.model.tokenize(padded), sharding),
            jax.device_put(policy.empty_ids, replicated(policy.mesh)),
            jax.device_put(np.arange(len(padded)), sharding),
            seed,
        )
        return images[:count]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One checkpoint's result.

    Attributes:
      images: set -> float32 [n, height, width, 3].
      scores: set -> scorer -> float32 [n].
    """

    images: dict[str, np.ndarray]
    scores: dict[str, dict[str, np.ndarray]]

    def means(self) -> dict[str, float]:
        """Means over the images whose score is finite, by "set/scorer"."""
        return {
            f"{name}/{scorer}": float(np.mean(values[np.isfinite(values)]))
            for name, scores in self.scores.items()
            for scorer, values in scores.items()
        }


class Evaluator:
    """Draws and scores the config's evaluation sets.

    Args:
      policy: the model.
      config: with `evaluation` and `sampler` as in `configs/common.py`.

    Raises:
      ValueError: if a set does not divide over the devices or names an unknown scorer.
    """

    def __init__(self, policy: Policy, config: ml_collections.ConfigDict):
        self.config = config.evaluation
        self.policy = policy
        self.sampler = Sampler(policy, config.sampler, config.microbatch.sample)
        self.prompts: dict[str, list[str]] = {}
        self._scorers: dict[str, dict[str, tuple]] = {}
        loaded = {}
        for name, chosen in self.config.sets.items():
            check_batch(
                f"config.evaluation.sets.{name}.images",
                chosen.images,
                policy.mesh,
                chosen.group_size,
            )
            source = make_prompts(chosen.prompts, self.config.seed)
            self.prompts[name] = prompt_batch(source, 0, chosen.images, chosen.group_size)
            self._scorers[name] = {}
            for scorer in chosen.scorers:
                if scorer not in self.config.scorers:
                    raise ValueError(
                        f"config.evaluation.sets.{name} names the scorer {scorer!r}, which is not "
                        f"in config.evaluation.scorers: {sorted(self.config.scorers)}."
                    )
                key = scorer, chosen.group_size
                if key not in loaded:
                    reward, params = load_scorer(self.config.scorers[scorer], chosen.group_size)
                    loaded[key] = jax.jit(reward), params, reward
                score, params, reward = loaded[key]
                inputs = reward.prepare(self.prompts[name])
                self._scorers[name][scorer] = score, params, inputs

    def score(self, name: str, images: jax.Array) -> dict[str, np.ndarray]:
        """Scores images of a set's prompts, in order: scorer -> float32 [n]."""
        return {
            scorer: np.asarray(score(params, jnp.asarray(images), inputs))
            for scorer, (score, params, inputs) in self._scorers[name].items()
        }

    def __call__(self, unet_params: Parameters) -> Evaluation:
        """Draws and scores every set with a checkpoint's parameters."""
        images, scores = {}, {}
        for index, (name, prompts) in enumerate(self.prompts.items()):
            drawn = self.sampler(unet_params, prompts, self.config.seed + index)
            images[name], scores[name] = np.asarray(drawn), self.score(name, drawn)
        return Evaluation(images, scores)


def best_score(means: Mapping[str, float], best: ml_collections.ConfigDict) -> float:
    """The number that the best checkpoint has the largest of: a weighted sum of means.

    Args:
      means: from `Evaluation.means`.
      best: "set/scorer" -> weight.

    Raises:
      ValueError: if a name is not among the means.
    """
    if unknown := set(best) - set(means):
        raise ValueError(f"config.evaluation.best names {sorted(unknown)}: see {sorted(means)}.")
    return sum(weight * means[name] for name, weight in best.items())
