"""Sets any two models of an evaluation head to head, on the same prompts and noise."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from diffusionrl_jax.evaluation.statistics import Bootstrap, Comparison, Scores, wins

CSV = "head_to_head.csv"


@dataclasses.dataclass(frozen=True)
class WinRate(Comparison):
    """The share of the images on which `model` scores higher than `against`; ties count half.

    The other way round, the rate is 1 less this one.

    Attributes:
      images: how many images had a finite score by both.
    """

    images: int


def win_rates(
    scores: Mapping[str, Scores],
    prompts: Mapping[str, Sequence[str]],
    head_to_head: Sequence[str],
) -> list[WinRate]:
    """Sets each model against each one before it, on every set.

    Args:
      scores: model -> its scores, as in `statistics.compare`.
      prompts: set -> the prompt of each image.
      head_to_head: the scorers that decide. Sets that they do not score are left out.
    """
    found = []
    for name, texts in prompts.items():
        bootstrap = Bootstrap(texts)
        for against, model in itertools.combinations(scores, 2):
            for scorer in head_to_head:
                if scorer not in scores[model][name]:
                    continue
                outcome = wins(scores[model][name][scorer], scores[against][name][scorer])
                interval = bootstrap.interval(bootstrap.mean(outcome), outcome)
                images = int(np.isfinite(outcome).sum())
                found.append(WinRate(model, against, name, scorer, *interval, images))
    return found
