"""A method as a sum of objectives: losses of what the denoiser predicts for latents it is shown.

The denoiser runs once on an example, every objective computes its loss from the output, and the
loss of the objective that the example belongs to is picked. One compiled denoiser thus serves any
number of objectives.

Axes: T tasks, B samples of each, P passes of the denoiser for a sample, U updates.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.diffusion.guidance import denoise_passes
from diffusionrl_jax.distributed.mesh import batch_sharding
from diffusionrl_jax.distributed.microbatch import map_microbatches
from diffusionrl_jax.distributed.shards import apply_by_device, gathered
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
    """What an objective makes its examples from: the samples of the tasks that learn by it.

    Attributes:
      samples: the samples, arrays [T, B, ...], without the images.
      advantages: float32 [T, B].
      rewards: float32 [T, B]; NaN where a picture is not finite.
      tasks: the numbers of these T tasks among all of the iteration's.
      step: the iteration's number, int32 scalar.
      batch: what the host gave the iteration.
      frozen: the parameters that are not trained.
      params: the trained parameters that the samples were drawn with.
      memory: the train state's memory.
    """

    samples: Samples
    advantages: jax.Array
    rewards: jax.Array
    step: jax.Array
    batch: Batch
    frozen: Frozen
    params: Parameters
    memory: Mapping
    tasks: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @property
    def places(self) -> jax.Array:
        """The samples' numbers among those of all tasks, int32 [T, B], by which keys are drawn."""
        batch = self.rewards.shape[1]
        return jnp.asarray(self.tasks)[:, None] * batch + jnp.arange(batch)

    def own(self, array: jax.Array) -> jax.Array:
        """Returns the rows of these tasks of an array that has one for each of all tasks."""
        return _rows(array, self.tasks)


class Objective(Protocol):
    """A loss, and the examples that it is computed on.

    `algorithms.policy_gradient.PolicyGradient` is one.

    Attributes:
      metrics: for each metric that the objective returns, by name, how the values of several
        samples become one: "mean" or "max".
    """

    @property
    def metrics(self) -> Mapping[str, str]: ...

    def examples(
        self, experience: Experience, scored: Scored, predict: Callable
    ) -> tuple[Examples, Text | None]:
        """Returns the examples of one iteration.

        Args:
          experience: what has drawn the samples.
          scored: the samples with their rewards and advantages.
          predict: a function of (params, examples, text, function). It runs the denoiser with these
            parameters on the examples and their rows of text, without a gradient and in the memory
            of one microbatch, and returns what the function makes of (output, latents, own), as
            arrays [U, B, ...].

        Returns:
          The examples, with `objective` 0, and the rows of text [R, B, P, ...] to which they refer;
          None in place of the text means the samples' own, in which row t is that of task t.
        """
        ...

    def __call__(
        self, output: jax.Array, example: Examples, active: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Computes the loss and the metrics of each sample of one update, which has no axis U.

        Args:
          output: the denoiser's output, float32 [B, P, ...].
          example: one slice of the examples along U.
          active: bool scalar. Where it is false the example is another objective's; the loss is
            then not used, but neither its value nor its gradient may be infinite or NaN.

        Returns:
          The loss [B], and the metrics by name, [B] each; [B * group] where rows stand for groups.
        """
        ...

    def summary(
        self, values: Mapping[str, np.ndarray], task_names: tuple[str, ...]
    ) -> dict[str, float]:
        """Returns what is logged of an iteration, by name.

        Args:
          values: the metrics, "loss" and "gradient_norm" of the objective's own updates, [U] each.
          task_names: the names of the tasks that learn by it, in order.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Objectives:
    """An `Algorithm` that is made of objectives.

    Attributes:
      experience: draws the samples and scores them.
      rules: how rewards become advantages.
      objectives: the objectives, in the order in which they are trained.
      tasks: for each of them, the numbers of the tasks whose samples it learns from.
      learner: takes the optimiser's steps.
    """

    experience: Experience
    rules: AdvantageRules
    objectives: tuple[Objective, ...]
    tasks: tuple[tuple[int, ...], ...]
    learner: Learner

    @property
    def mesh(self):
        """The devices."""
        return self.experience.mesh

    @property
    def rewards(self):
        """The rewards, one per task."""
        return self.experience.rewards

    @property
    def reductions(self) -> dict[str, str]:
        """How the values of several samples become one, "mean" or "max", for each metric."""
        found = {"loss": "mean"}
        for objective in self.objectives:
            found |= objective.metrics
        return found

    def phases(self) -> Phases:
        """Returns the parts of an iteration."""
        sample, score = self.experience.sample, self.experience.scoring.score
        return Phases(sample, score, self.prepare, self.update, self.learner.finish)

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
        """Turns scored samples into the examples that are trained on.

        Args:
          params: the trained parameters that the samples were drawn with.
          frozen: the parameters that are not trained.
          samples: the samples, without images.
          rewards: float32 [T, B].
          batch: what the host gave the iteration.
          step: the iteration's number, int32 scalar.
          memory: the train state's memory.

        Returns:
          The examples, in the order in which they are trained on, with their text, the changed
          parts of the memory, and the rewards' metrics.
        """
        if samples.text is not None:
            advantages, kept = self.rules(rewards, batch, memory)
            values, of_rewards = advantages.values, reward_metrics(advantages)
        else:
            values, kept, of_rewards = rewards, {}, {}
        samples, found = samples.finite(), []
        for place, (objective, tasks) in enumerate(zip(self.objectives, self.tasks, strict=True)):
            own = functools.partial(_rows, tasks=tasks)
            scored = Scored(
                *jax.tree.map(own, (samples, values, rewards)),
                *(step, batch, frozen, params, memory, tasks),
            )
            part, text = objective.examples(self.experience, scored, self._predict)
            whose = {"objective": jnp.full(len(part.weight), place), "objectives": (place,)}
            if text is None:
                whose["text"] = jnp.asarray(tasks)[part.text]
            found.append((dataclasses.replace(part, **whose), text))

        def batch_of(of):
            part, text = of
            passes = jax.tree.leaves(samples.text if text is None else text)[0].shape[2]
            return part.latents.shape[1], part.group, passes

        lessons = [
            self._shard(_lesson(list(of_batch), samples.text))
            for _, of_batch in itertools.groupby(found, batch_of)
        ]
        examples, text = lessons[0]
        return Prepared(examples, text, kept, of_rewards, tuple(lessons[1:]))

    def _predict(self, params: Parameters, examples: Examples, text: Text, function: Callable):
        """Runs the denoiser on examples; this is the `predict` of `Objective.examples`."""
        model, mesh = self.experience.model, self.mesh
        by_blocks = self.experience.adaptation.by_blocks
        denoiser = gathered(params, mesh, model.dtype, by_blocks=by_blocks)
        count = self.learner.microbatches(examples.times.shape[1], examples.group)

        def of_batch(denoiser, batch):
            def of_microbatch(part):
                latents, times, own, rows = part
                output = denoise_passes(model, denoiser, latents, times, rows)
                return function(output, latents, own)

            return map_microbatches(of_microbatch, batch, count, mesh)

        def of_update(example):
            rows = jax.tree.map(lambda rows: rows[example.text], text)
            batch = (example.latents, example.times, example.own, rows)
            return apply_by_device(of_batch, denoiser, batch, mesh)

        return jax.lax.map(of_update, examples)

    def _shard(self, tree):
        """Splits axis 1, the batch, of every array that has one, over the devices."""
        sharding = batch_sharding(self.mesh, axis=1)
        place = lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding)
        return jax.tree.map(lambda leaf: place(leaf) if leaf.ndim > 1 else leaf, tree)

    def loss(
        self, params: Parameters, base: Parameters | None, example: Examples, text: Text
    ) -> tuple[jax.Array, Metrics]:
        """Computes the loss of one batch, or microbatch, of one update, which has no axis U.

        Args:
          params, base: as in `Adaptation.denoiser`.
          example: the samples' slice of the examples.
          text: the samples' text, a tree of [B, P, ...].

        Returns:
          The loss times the example's weight, and the metrics: float32 scalars, reduced as
          `reductions` says, among them the unweighted "loss".
        """
        model, denoiser = self.experience.model, self.experience.adaptation.denoiser(params, base)
        output = denoise_passes(model, denoiser, example.latents, example.times, text)
        losses = []
        metrics: Metrics = {name: jnp.float32(0) for name in self.reductions}
        for place in example.objectives:
            objective, active = self.objectives[place], example.objective == place
            loss, said = objective(output, example, active)
            losses.append(loss)
            for name, values in said.items():  # Several may have metrics of one name.
                value = values.max() if objective.metrics[name] == "max" else values.mean()
                metrics[name] = jnp.where(active, value, metrics[name])
        places = jnp.asarray(example.objectives)
        loss = jax.lax.select_n(jnp.argmax(places == example.objective), *losses).mean()
        return example.weight * loss, metrics | {"loss": loss}

    def update(
        self, state: TrainState, frozen: Frozen, example: Examples, text: Text
    ) -> tuple[TrainState, Metrics]:
        """Takes one step of the optimiser on one update; see `Learner.update`.

        The metrics say which "objective" it was of.
        """
        gather = lambda params: self.experience.adaptation.gather(
            params, frozen.base, self.mesh, self.experience.model.dtype
        )
        arguments = self.loss, self.reductions, gather, state, example, text
        state, metrics = self.learner.update(*arguments)
        return state, metrics | {"objective": example.objective}

    def summary(
        self, metrics: Mapping[str, np.ndarray], task_names: tuple[str, ...]
    ) -> dict[str, float]:
        """Returns what is logged of an iteration's updates, by name."""
        owners, of_updates = metrics["objective"], {*self.reductions, "gradient_norm"}
        found = {}
        for place, (objective, tasks) in enumerate(zip(self.objectives, self.tasks, strict=True)):
            values = {name: metrics[name][owners == place] for name in of_updates}
            found |= objective.summary(values, tuple(task_names[task] for task in tasks))
        return found


def _rows(array: jax.Array, tasks: tuple[int, ...]) -> jax.Array:
    """Returns the rows of some tasks, which are in order; all of them are not copied."""
    return array if len(tasks) == len(array) else array[np.array(tasks)]


def _lesson(found: list[tuple[Examples, Text | None]], drawn: Text | None) -> tuple[Examples, Text]:
    """Puts objectives' examples of one batch together, with the rows of text to which they refer.

    Args:
      found: examples with rows of text of their own, or None for those of the samples.
      drawn: the samples' rows of text; None where there are no samples.
    """
    parts, texts, rows = [], [], 0
    if any(text is None for _, text in found):
        assert drawn is not None  # Nothing else is referred to.
        texts, rows = [drawn], len(jax.tree.leaves(drawn)[0])
    for part, text in found:
        if text is not None:
            part = dataclasses.replace(part, text=part.text + rows)
            texts.append(text)
            rows += len(jax.tree.leaves(text)[0])
        parts.append(part)
    return concatenate(parts), jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *texts)
