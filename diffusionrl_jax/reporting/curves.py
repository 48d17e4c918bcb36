"""Draws what was measured while runs trained, several runs over each other."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from diffusionrl_jax.evaluation.statistics import Bootstrap
from diffusionrl_jax.reporting.plots import COLOURS, PLAIN, Curve, colour, plot
from diffusionrl_jax.reporting.reading import RunData

T = TypeVar("T")
ITERATION = "iteration"
NORMAL = 1.96  # Standard deviations of a 95% interval.


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot with what is written above it.

    Attributes:
      title: its title.
      note: what is said of it; may be empty.
      svg: the plot.
    """

    title: str
    note: str
    svg: str


def column(rows: Iterable[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps and the values, [n] each, of the rows that have a metric."""
    found = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    return np.array([step for step, _ in found], float), np.array([y for _, y in found], float)


def _over_runs(
    runs: Sequence[RunData],
    title: str,
    note: str,
    curve: Callable[[RunData], Curve | None],
    x_label: str = ITERATION,
) -> list[Plot]:
    """Draws a curve of each run that has one, in the run's colour; nothing if none has."""
    found = [
        dataclasses.replace(drawn, name=run.name, colour=colour(number))
        for number, run in enumerate(runs)
        if (drawn := curve(run)) is not None and len(drawn.x)
    ]
    return [Plot(title, note, plot(title, found, x_label, x_label == ITERATION))] if found else []


def unique(names: Iterable[T]) -> list[T]:
    """Returns names without repeats, in order."""
    return list(dict.fromkeys(names))


def reward_plots(runs: Sequence[RunData]) -> list[Plot]:
    """Draws each task's mean reward of every iteration, with its interval."""

    def curve(run: RunData, task: str) -> Curve | None:
        if task not in run.tasks:
            return None
        x, mean = column(run.rows, f"{task}/reward_mean")
        _, std = column(run.rows, f"{task}/reward_std")
        if len(std) != len(mean):
            return Curve(run.name, x, mean)
        # Pictures of one prompt resemble each other: each prompt counts once.
        prompts = run.config["batch_size"] / run.config["tasks"][task]["group_size"]
        margin = NORMAL * std / math.sqrt(max(1.0, prompts))
        return Curve(run.name, x, mean, mean - margin, mean + margin)

    plots = []
    for task in unique(task for run in runs for task in run.tasks):
        note = "reward of what is drawn to train on"
        plots += _over_runs(runs, task, note, lambda run, task=task: curve(run, task))
    return plots


def _judged(run: RunData, name: str, scorer: str) -> Curve | None:
    """Returns a set's mean score by evaluations, with its interval where the scores were kept."""
    values = []
    for record in run.evaluations:
        if scorer in record.scores.get(name, {}):
            bootstrap = Bootstrap(record.prompts[name])
            scores = record.scores[name][scorer]
            interval = bootstrap.interval(bootstrap.mean(scores), scores)
            values.append((record.step, *interval))
    if values:
        x, y, low, high = np.array(values, float).T
        return Curve(run.name, x, y, low, high, points=True)
    x, y = column(run.rows, f"{name}/{scorer}")
    return Curve(run.name, x, y, points=True)


def judge_plots(runs: Sequence[RunData]) -> list[Plot]:
    """Draws the mean of each evaluation set's scores, by each scorer."""
    chosen: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for name, described in run.config["evaluation"]["sets"].items():
            for scorer in described["scorers"]:
                chosen.setdefault((scorer, name), []).extend(run.rewarded.get(scorer, []))
    plots = []
    for (scorer, name), tasks in sorted(chosen.items()):
        note = f"rewards {', '.join(unique(tasks))}" if tasks else "never a reward"
        curve = lambda run, name=name, scorer=scorer: _judged(run, name, scorer)
        plots += _over_runs(runs, f"{scorer}, {name}", note, curve)
    return plots


WATCHED = {
    "watch/kl_to_base": ("KL to the base model", "nats an element of a step's latents"),
    "watch/noise_length": ("length of the predicted noise", "1 is the base model's"),
    "watch/diversity/": ("diversity within a prompt", "1 is the base model's"),
    "watch/gain_entropy/": ("entropy of the gain over prompts", "1: all have gained alike"),
}


def watch_plots(runs: Sequence[RunData]) -> list[Plot]:
    """Draws what is watched beside the rewards."""
    plots = []
    logged = sorted({name for run in runs for row in run.rows for name in row})
    for start, (title, note) in WATCHED.items():
        for name in logged:
            if name.startswith(start):
                what = name.removeprefix(start)
                curve = lambda run, name=name: Curve("", *column(run.rows, name), points=True)
                plots += _over_runs(runs, f"{title}, {what}" if what else title, note, curve)
    return plots


def frontier_plots(runs: Sequence[RunData]) -> list[Plot]:
    """Draws each task's reward against the KL to the base model, through training."""

    def curve(run: RunData, task: str) -> Curve | None:
        rows = [row for row in run.rows if isinstance(row.get("watch/kl_to_base"), int | float)]
        rows = [row for row in rows if isinstance(row.get(f"{task}/reward_mean"), int | float)]
        _, kl = column(rows, "watch/kl_to_base")
        _, reward = column(rows, f"{task}/reward_mean")
        return Curve(run.name, kl, reward, points=True)

    plots = []
    for task in unique(task for run in runs for task in run.tasks):
        note = "higher and further left is better"
        plots += _over_runs(
            runs, f"{task}: reward against KL", note, lambda run, task=task: curve(run, task), "KL"
        )
    return plots


def percentile_plots(run: RunData, task: str) -> list[Plot]:
    """Draws the scores of each percentile of pictures, of the base model and of the last one."""
    if not run.evaluations:
        return []
    plots, first, last = [], run.evaluations[0], run.evaluations[-1]
    for name, scorer in run.judged(task):
        curves = []
        for record, drawn_in, dashed in ((first, PLAIN, True), (last, COLOURS[0], False)):
            scores = record.scores.get(name, {}).get(scorer, np.zeros(0))
            scores = scores[np.isfinite(scores)]
            if scores.size:
                x = np.linspace(0, 100, min(101, max(2, scores.size)))
                y = np.percentile(scores, x)
                legend = f"iteration {record.step}"
                curves.append(Curve(legend, x, y, colour=drawn_in, dashed=dashed))
        if curves:
            title = f"{scorer}, {name}"
            note = f"dashed: iteration {first.step}; line: iteration {last.step}"
            plots.append(Plot(title, note, plot(title, curves, "percentile of pictures")))
    return plots


def speed_plots(runs: Sequence[RunData]) -> list[Plot]:
    """Draws how many images each second of an iteration has drawn and learned from."""
    curve = lambda run: Curve(run.name, *column(run.rows, "images_per_second"))
    return _over_runs(runs, "images a second", "of an iteration, evaluations left out", curve)
