"""A method as a sum of objectives: losses of what the denoiser says of latents it is shown.

The denoiser runs once on an example, each objective reads its output, and the example's own is
picked: one compiled denoiser for any number of objectives.

Axes: T tasks, B samples of each, P passes of the denoiser for a sample, U updates.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.diffusion.guidance import denoise_passes
from diffusionrl_jax.distributed.mesh import batch_sharding, gather_parameters
from diffusionrl_jax.distributed.microbatch import map_microbatches, microbatch_count
from diffusionrl_jax.learning.advantages import AdvantageRules, reward_metrics
from diffusionrl_jax.learning.examples import Examples, concatenate
from diffusionrl_jax.learning.experience import Experience
from diffusionrl_jax.learning.gradient import Learner
from diffusionrl_jax.learning.iteration import Batch, Frozen, Samples
from diffusionrl_jax.learning.phases import Phases, Prepared
from diffusionrl_jax.learning.state import TrainState
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_to_image import Text

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class Scored:
    """What an objective makes its examples of.

    Attributes:
      samples: [T, B, ...], but for the images.
      advantages: float32 [T, B].
      rewards: float32 [T, B], NaN where a picture is not finite.
      step: int32 scalar, the iteration.
      batch: what the iteration takes from the host.
      frozen: parameters that do not change.
      params: what the samples were drawn with, of what is trained.
      memory: of the state.
    """

    samples: Samples
    advantages: jax.Array
    rewards: jax.Array
    step: jax.Array
    batch: Batch
    frozen: Frozen
    params: Parameters
    memory: Mapping


class Objective(Protocol):
    """A loss. `algorithms/policy_gradient.PolicyGradient` is one.

    Attributes:
      metrics: of what it says of each sample, by name, how several become one: "mean" or "max".
    """

    @property
    def metrics(self) -> Mapping[str, str]: ...

    def examples(
        self, experience: Experience, scored: Scored, predict: Callable
    ) -> tuple[Examples, Text | None]:
        """What it is trained on in an iteration.

        Args:
          experience: which has drawn the samples.
          scored: the samples, and how good they are.
          predict: of (parameters of the denoiser, examples, text, function) gives what the function
            makes of (output, example), without a gradient, in the memory of one microbatch.

        Returns:
          The examples, `objective` 0, and rows of text [R, B, P, ...] to which they refer; None
          where these are the samples' own.
        """
        ...

    def __call__(
        self, output: jax.Array, example: Examples, active: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """The loss [B] and metrics [B] of one update, without the axis U.

        Args:
          output: float32 [B, P, ...], of the denoiser.
          example: one slice of the examples.
          active: bool scalar. Where it is false the example is another objective's, and neither
            value nor gradient may be infinite.
        """
        ...

    def summary(
        self, values: Mapping[str, np.ndarray], task_names: tuple[str, ...]
    ) -> dict[str, float]:
        """What is logged of an iteration, by name, of each update's values [U]."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Objectives:
    """An `Algorithm` made of objectives.

    Attributes:
      experience: which draws and scores.
      rules: of the advantages.
      objectives: in the order in which they are trained.
      learner: which takes the steps.
    """

    experience: Experience
    rules: AdvantageRules
    objectives: tuple[Objective, ...]
    learner: Learner

    @property
    def mesh(self):
        """The devices."""
        return self.experience.mesh

    @property
    def rewards(self):
        """One per task."""
        return self.experience.rewards

    @property
    def reductions(self) -> dict[str, str]:
        """How each metric of several samples becomes one."""
        found = {"loss": "mean"}
        for objective in self.objectives:
            found |= objective.metrics
        return found

    def phases(self) -> Phases:
        """The parts of an iteration."""
        experience, learner = self.experience, self.learner
        return Phases(
            experience.sample, experience.score, self.prepare, self.update, learner.finish
        )

    def prepare(
        self,
        params: Parameters,
        frozen: Frozen,
        samples: Samples,
        rewards: jax.Array,
        batch: Batch,
        step: jax.Array,
        memory: Mapping,
    ) -> Prepared:
        """Turns scored samples into what is trained on.

        Args:
          params: what the samples were drawn with, of what is trained.
          frozen: parameters that do not change.
          samples: without images.
          rewards: float32 [T, B].
          batch: of the iteration.
          step: int32 scalar, the iteration.
          memory: of the state.

        Returns:
          Examples in the order in which they are trained on.
        """
        advantages, kept = self.rules(rewards, batch, memory)
        scored = Scored(samples, advantages.values, rewards, step, batch, frozen, params, memory)
        parts, texts, rows = [], [samples.text], len(rewards)
        for place, objective in enumerate(self.objectives):
            part, text = objective.examples(self.experience, scored, self._predict)
            if text is not None:
                part = dataclasses.replace(part, text=part.text + rows)
                texts.append(text)
                rows += len(jax.tree.leaves(text)[0])
            parts.append(dataclasses.replace(part, objective=jnp.full(len(part.weight), place)))
        text = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *texts)
        examples = self._shard(concatenate(parts))
        return Prepared(examples, self._shard(text), kept, reward_metrics(advantages))

    def _predict(self, params: Parameters, examples: Examples, text: Text, function: Callable):
        """See `Objective.examples`."""
        model, mesh = self.experience.model, self.mesh
        whole = gather_parameters(params, mesh, model.dtype)
        count = microbatch_count(examples.times.shape[1], self.learner.microbatch, mesh.size)

        def of_microbatch(part):
            latents, times, own, rows = part
            output = denoise_passes(model, whole, latents, times, rows)
            return function(output, latents, own)

        def of_update(example):
            rows = jax.tree.map(lambda rows: rows[example.text], text)
            part = (example.latents, example.times, example.own, rows)
            return map_microbatches(of_microbatch, part, count, mesh)

        return jax.lax.map(of_update, examples)

    def _shard(self, tree):
        """Splits axis 1 of every array that has one, the batch, over the devices."""
        sharding = batch_sharding(self.mesh, axis=1)
        place = lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding)
        return jax.tree.map(lambda leaf: place(leaf) if leaf.ndim > 1 else leaf, tree)

    def loss(
        self, params: Parameters, base: Parameters | None, example: Examples, text: Text
    ) -> tuple[jax.Array, Metrics]:
        """The loss of one (micro)batch of one update, without the axis U.

        Args:
          params, base: as in `Adaptation.denoiser`.
          example, text: of the same samples.

        Returns:
          The weighted mean loss, and float32 scalars, reduced as `reductions` says.
        """
        model, denoiser = self.experience.model, self.experience.adaptation.denoiser(params, base)
        output = denoise_passes(model, denoiser, example.latents, example.times, text)
        losses, metrics = [], {}
        for place, objective in enumerate(self.objectives):
            loss, said = objective(output, example, example.objective == place)
            losses.append(loss)
            metrics |= {
                name: values.max() if objective.metrics[name] == "max" else values.mean()
                for name, values in said.items()
            }
        loss = jax.lax.select_n(example.objective, *losses).mean()
        return example.weight * loss, metrics | {"loss": loss}

    def update(
        self, state: TrainState, frozen: Frozen, example: Examples, text: Text
    ) -> tuple[TrainState, Metrics]:
        """One optimiser step on one update; see `Learner.update`."""
        gather = lambda params: self.experience.adaptation.gather(
            params, frozen.base, self.mesh, self.experience.model.dtype
        )
        return self.learner.update(self.loss, self.reductions, gather, state, example, text)

    def summary(
        self, metrics: Mapping[str, np.ndarray], task_names: tuple[str, ...]
    ) -> dict[str, float]:
        """What is logged of the losses of an iteration, by name."""
        owners, of_updates = metrics["objective"], {*self.reductions, "gradient_norm"}
        found = {}
        for place, objective in enumerate(self.objectives):
            values = {name: metrics[name][owners == place] for name in of_updates}
            found |= objective.summary(values, task_names)
        return found
