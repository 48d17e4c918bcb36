"""Watches a run for rewards that are fooled: they rise while what nobody is rewarded by falls.

What is compared with the base model: the judges that no task is rewarded by, the diversity of each
prompt's pictures, the length of the predicted noise, and the KL divergence. How evenly the prompts
share in what the rewards have gained is measured beside them. All of it is computed at evaluations.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from diffusionrl_jax.evaluation.records import Record, comparable, mean_by_prompt, unscored

# Less than one false alarm in a thousand comparisons.
SIGNIFICANCE = 1e-3
# Of the base model's. Fewer differences than this between a prompt's pictures are a collapse.
LEAST_DIVERSITY = 0.75
# The length of the predicted noise, in the base model's.
NOISE_LENGTHS = (0.9, 1.1)
# What a judge falls by less than is of no account, however clear: in deviations of its scores of
# the base model's prompts, and, where all of these are alike, in its unit.
LEAST_FALL, LEAST_UNITS = 0.05, 1e-5


@dataclasses.dataclass(frozen=True)
class Rise:
    """How a task's reward has changed from the first iterations to the last ones.

    Attributes:
      task: the task's name.
      before, after: the mean rewards.
      is_clear: whether it has risen by more than chance explains.
    """

    task: str
    before: float
    after: float
    is_clear: bool


def risen(config: Mapping[str, Any], rows: Sequence[Mapping[str, float | None]]) -> list[Rise]:
    """Returns how those of an experiment's rewards have changed that have clearly risen.

    Args:
      config: the experiment, a config or a dictionary.
      rows: its metrics, as in `rise`.
    """
    window, batch = config["evaluation"]["every"], config["batch_size"]
    rises = (
        rise(name, rows, window, batch // task["group_size"])
        for name, task in config["tasks"].items()
    )
    return [one for one in rises if one is not None and one.is_clear]


def rise(
    task: str, rows: Sequence[Mapping[str, float | None]], window: int, independent: int
) -> Rise | None:
    """Compares a task's rewards in the last rows of a run's metrics with those in the first.

    Args:
      task: the task's name.
      rows: the rows, from iteration 1 on. Those without a reward are left out.
      window: how many rows at each end are compared.
      independent: how many independent rewards an iteration has: its prompts.

    Returns:
      The change; None while there are fewer than two rows.
    """
    mean, std = f"{task}/reward_mean", f"{task}/reward_std"
    values = [(row[mean], row[std]) for row in rows if _is_number(row.get(mean))]
    window = min(window, len(values) // 2)
    if not window:
        return None
    ends = [np.array(part, float) for part in (values[:window], values[-window:])]
    before, after = (float(end[:, 0].mean()) for end in ends)
    squared = sum(np.square(end[:, 1]).mean() / (window * independent) for end in ends)
    deviation = math.sqrt(float(squared))
    is_clear = stats.norm.sf((after - before) / max(deviation, 1e-12)) < SIGNIFICANCE
    return Rise(task, before, after, bool(is_clear))


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def paired_changes(base: Record, now: Record, scorer: str) -> np.ndarray:
    """Returns how each prompt's mean score has changed, over all sets that the scorer judges.

    Args:
      base, now: two evaluations of the same prompts with the same noise.
      scorer: the scorer.

    Returns:
      [prompts], of those that have scores in both.
    """
    changes = []
    for name in _sets_in_both(base, now, scorer):
        change = now.scores[name][scorer] - base.scores[name][scorer]
        changes += mean_by_prompt(now.prompts[name], change).values()
    return np.array(changes, float)


def _sets_in_both(base: Record, now: Record, scorer: str) -> list[str]:
    """Returns the sets that a scorer judges in both records: the same prompts in the same way."""
    return [
        name
        for name, scores in now.scores.items()
        if scorer in scores
        and scorer in base.scores.get(name, {})
        and base.prompts[name] == now.prompts[name]
        and comparable(base, now, f"{name}/{scorer}")
    ]


def not_compared(base: Record, now: Record) -> list[str]:
    """Returns what both records have, and what came about otherwise: keys of `Record.settings`."""
    return [key for key in now.settings if not comparable(base, now, key)]


def least_fall(base: Record, now: Record, scorer: str) -> float:
    """Returns how far a scorer's mean has to be below the base model's to count as fallen.

    Args:
      base, now, scorer: as in `paired_changes`.
    """
    before = [
        score
        for name in _sets_in_both(base, now, scorer)
        for score in mean_by_prompt(base.prompts[name], base.scores[name][scorer]).values()
    ]
    return max(LEAST_FALL * float(np.std(before)), LEAST_UNITS) if before else LEAST_UNITS


def has_fallen(changes: np.ndarray, least: float = LEAST_UNITS) -> bool:
    """Returns whether changes are below 0 by more than chance explains, by Student's t test.

    Args:
      changes: [prompts], from `paired_changes`.
      least: how far below 0 their mean has to be at least.
    """
    if len(changes) < 3 or not changes.mean() < -least:
        return False
    if np.ptp(changes) == 0:
        return True  # All have fallen alike.
    _, probability = np.asarray(stats.ttest_1samp(changes, 0, alternative="less"))
    return bool(probability < SIGNIFICANCE)


def diversity_share(base: Record, now: Record, name: str) -> float:
    """Returns a set's mean distance within prompts, in those of the base model; NaN without any.

    Prompts with a picture that is not finite, of either model, are left out.
    """
    if not comparable(base, now, name):
        return math.nan
    before, after = base.distances.get(name, {}), now.distances.get(name, {})
    both = [
        prompt
        for prompt in before.keys() & after.keys()
        if math.isfinite(before[prompt]) and math.isfinite(after[prompt])
    ]
    total = sum(before[prompt] for prompt in both)
    return sum(after[prompt] for prompt in both) / total if total else math.nan


def gain_entropy(changes: np.ndarray) -> float:
    """Computes how evenly prompts share in what was gained.

    Args:
      changes: [prompts], how much each has gained. What was lost counts as no gain.

    Returns:
      The entropy of their shares over its largest value, that of equal shares: from 0, where one
      prompt has it all, to 1. It is NaN where nothing was gained, or by fewer than two prompts.
    """
    gains = np.maximum(np.asarray(changes, float), 0)
    if len(gains) < 2 or not gains.sum() > 0:
        return math.nan
    return float(stats.entropy(gains) / math.log(len(gains)))


def signals(
    base: Record, now: Record, rewarded: Mapping[str, Sequence[str]], probe: Mapping[str, float]
) -> dict[str, float]:
    """Returns what is logged of an evaluation, beside its scores.

    Args:
      base: the base model's evaluation.
      now: that of what is trained.
      rewarded: for each scorer, the tasks that are rewarded by it.
      probe: what `Probe` says.

    Returns:
      "watch/kl_to_base" and "watch/noise_length", which need not be finite, and
      "watch/diversity/<set>" and "watch/gain_entropy/<scorer>", those that are.
    """
    found: dict[str, float] = {}
    for name in now.scores:
        found[f"watch/diversity/{name}"] = diversity_share(base, now, name)
    for scorer, tasks in rewarded.items():
        if tasks:
            entropy = gain_entropy(paired_changes(base, now, scorer))
            found[f"watch/gain_entropy/{scorer}"] = entropy
    finite = {name: value for name, value in found.items() if math.isfinite(value)}
    return {f"watch/{name}": value for name, value in probe.items()} | finite


def lost_scores(base: Record, now: Record) -> dict[str, int]:
    """Returns how many more pictures of each set have no score than the base model's, if any.

    A picture that is not finite has none, and is in no mean.
    """
    found: dict[str, int] = {}
    for scorer in {scorer for scores in now.scores.values() for scorer in scores}:
        for name in _sets_in_both(base, now, scorer):
            lost = unscored(now, name, scorer) - unscored(base, name, scorer)
            found[name] = max(lost, found.get(name, 0))
    return {name: count for name, count in found.items() if count > 0}


def falls(
    base: Record,
    now: Record,
    rewarded: Mapping[str, Sequence[str]],
    watched: Mapping[str, float | None],
) -> list[str]:
    """Says what has become worse than with the base model, by more than chance or taste explain.

    Args:
      base, now, rewarded: as in `signals`.
      watched: what `signals` returned, with None or NaN for what is not finite.

    Returns:
      A phrase for each, such as "recognition fell by 0.081".
    """
    found = [
        f"{count} more of the {len(now.prompts[name])} pictures of {name} have no score"
        for name, count in lost_scores(base, now).items()
    ]
    for scorer, tasks in rewarded.items():
        changes = paired_changes(base, now, scorer)
        if not tasks and has_fallen(changes, least_fall(base, now, scorer)):
            found.append(f"{scorer}, never a reward, fell by {-changes.mean():.3g}")
    shares = {
        name: share
        for name in now.scores
        if _is_number(share := watched.get(f"watch/diversity/{name}")) and share < LEAST_DIVERSITY
    }
    if shares:
        name, share = min(shares.items(), key=lambda item: item[1])
        found.append(f"the pictures of a prompt in {name} differ {share:.0%} as much as at first")
    length = watched.get("watch/noise_length", 1.0)
    if not _is_number(length):
        found.append("the predicted noise is not finite")
    elif not NOISE_LENGTHS[0] <= length <= NOISE_LENGTHS[1]:
        found.append(f"the predicted noise is {length:.2f} times as long as the base model's")
    return found


def warning(rises: Sequence[Rise], fallen: Sequence[str]) -> str:
    """Returns a sentence about rewards that seem to be fooled, or about a model that breaks.

    Args:
      rises: from `risen`.
      fallen: from `falls`.

    Returns:
      The sentence; nothing where nothing has fallen.
    """
    if not fallen:
        return ""
    if not rises:
        return f"No reward has clearly risen, and {'; '.join(fallen)}: the model breaks."
    rewards = ", ".join(f"{one.task} ({one.before:.3g} to {one.after:.3g})" for one in rises)
    return f"The reward rises, of {rewards}, while {'; '.join(fallen)}: it may be fooled."
