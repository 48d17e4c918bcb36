"""Evaluates what a run has trained, and keeps what tells whether its rewards are fooled."""

from collections.abc import Mapping, Sequence

import numpy as np

from diffusionrl_jax.evaluation import diversity, records
from diffusionrl_jax.evaluation.evaluator import Evaluation, Evaluator
from diffusionrl_jax.evaluation.probe import Probe
from diffusionrl_jax.evaluation.records import Record
from diffusionrl_jax.experiments.experiment import OpenedScorer
from diffusionrl_jax.models.parameters import Parameters


class Observer:
    """Evaluates parameters, and compares the pictures of each prompt with each other.

    Args:
      evaluator: draws and scores the evaluation sets.
      probe: compares the denoiser with the base model; None leaves that out.
      opened: the tasks' scorers, which may have an image tower, too.
      per_device: how many pictures a device embeds at a time; 0 means a few.

    Attributes:
      compared_by: what pictures are compared by, `diversity.CLIP` or `diversity.PIXELS`.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        probe: Probe | None,
        opened: Sequence[OpenedScorer] = (),
        per_device: int = 0,
    ):
        self.evaluator, self.probe = evaluator, probe
        scorers = [*evaluator.open_scorers(), *((one.reward, one.params) for one in opened)]
        mesh = evaluator.policy.mesh
        self.compared_by, self._features = diversity.make_features(scorers, mesh, per_device)

    def __call__(
        self, params: Mapping[str, Parameters], step: int
    ) -> tuple[Evaluation, Record, dict[str, float]]:
        """Draws and scores every set.

        Args:
          params: the parameters by network: the denoiser's, "vae" and "text_encoder".
          step: the iteration after which they are.

        Returns:
          The evaluation, what a run keeps of it, and what the probe says.
        """
        prompts = self.evaluator.prompts
        features: dict[str, list[np.ndarray]] = {name: [] for name in prompts}
        pictures: dict[str, dict[int, bytes]] = {name: {} for name in prompts}
        kept = {
            name: records.kept_pictures(len(texts), list(self.evaluator.shown[name]))
            for name, texts in prompts.items()
        }

        def look(name: str, block: slice, images: np.ndarray) -> None:
            features[name].append(self._features(images))
            inside = kept[name][(kept[name] >= block.start) & (kept[name] < block.stop)]
            if inside.size:
                small = records.shrink(images[inside - block.start])
                encoded = map(records.encode, small)
                pictures[name] |= dict(zip(inside.tolist(), encoded, strict=True))

        evaluation = self.evaluator(params, look=look)
        distances = {
            name: diversity.within_prompts(prompts[name], np.concatenate(parts))
            for name, parts in features.items()
        }
        settings = records.settings_of(self.evaluator.config, self.compared_by)
        record = Record(step, dict(prompts), evaluation.scores, distances, pictures, settings)
        return evaluation, record, self.probe(params) if self.probe else {}
