"""Tells an evaluation's scores by the categories that a suite's prompts belong to."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from diffusionrl_jax.data.suites import Categorised, columns_of
from diffusionrl_jax.evaluation.statistics import Bootstrap, Scores

CSV = "categories.csv"


@dataclasses.dataclass(frozen=True)
class CategoryMean:
    """The mean score of a category's images.

    Attributes:
      model, set, scorer: the model's name, the set of prompts, and the scorer.
      column: what the categories are of, as "Challenge".
      category: the category.
      value: the mean of the finite scores; NaN where there is none.
      low, high: the bounds of its 95% interval, by a bootstrap over the category's prompts; NaN for
        a single one.
      images: how many images had a finite score.
    """

    model: str
    set: str
    column: str
    category: str
    scorer: str
    value: float
    low: float
    high: float
    images: int


def by_category(
    scores: Mapping[str, Scores],
    prompts: Mapping[str, Sequence[str]],
    categories: Mapping[str, Categorised],
) -> list[CategoryMean]:
    """Computes the mean of each category that occurs, in the order of the suite.

    Args:
      scores: model -> its scores, as in `statistics.compare`.
      prompts: set -> the prompt of each image.
      categories: set -> prompt -> column -> category. Sets may be missing.
    """
    found = []
    for name, categorised in categories.items():
        for column in columns_of(categorised):
            of_image = np.array([categorised[text].get(column, "") for text in prompts[name]])
            known = dict.fromkeys(columns.get(column, "") for columns in categorised.values())
            for category in known:
                inside = np.flatnonzero(of_image == category)
                if not (category and inside.size):
                    continue
                bootstrap = Bootstrap([prompts[name][index] for index in inside.tolist()])
                for model, sets in scores.items():
                    for scorer, values in sets[name].items():
                        chosen = values[inside]
                        interval = bootstrap.interval(bootstrap.mean(chosen), chosen)
                        images = int(np.isfinite(chosen).sum())
                        where = model, name, column, category, scorer
                        found.append(CategoryMean(*where, *interval, images))
    return found
