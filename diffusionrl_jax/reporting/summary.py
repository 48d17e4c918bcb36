"""Says in words and tables what runs were, what they cost, and what they were warned of."""

import dataclasses
import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from diffusionrl_jax.algorithms import pairs_of, tasks_by_method
from diffusionrl_jax.evaluation import tables, watch
from diffusionrl_jax.evaluation.records import comparable, unscored
from diffusionrl_jax.evaluation.statistics import Bootstrap, Measurement
from diffusionrl_jax.experiments.algorithm import images_per_iteration
from diffusionrl_jax.reporting.curves import unique
from diffusionrl_jax.reporting.reading import RunData

SECONDS = "seconds/"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
      title: what stands above it; may be empty.
      head: the columns' names.
      rows: its cells.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def what_was_trained(run: RunData) -> list[tuple[str, str]]:
    """Returns what a run is, as names and texts."""
    images = images_per_iteration(ml_collections.ConfigDict(run.config))
    config, versions, rank = run.config, run.versions, run.config["lora"]["rank"]
    done = run.rows[-1]["step"] if run.rows else 0
    tasks = (
        f"{name}: {_scorer(task['scorer'])} on {task['prompts']}"
        for name, task in config["tasks"].items()
    )
    devices = f"{versions.get('devices', '?')} of {versions.get('device', 'an unknown kind')}"
    return [
        ("model", config["model"]),
        ("what is trained", f"LoRA of rank {rank}" if rank else "all of the denoiser"),
        ("method", _methods(config)),
        ("tasks", "; ".join(tasks)),
        ("iterations", f"{done:,} of {config['iterations']:,}"),
        ("images an iteration", f"{images:,}"),
        ("learning rate", f"{config['optimizer']['learning_rate']:g}"),
        ("weight of the pretraining loss", f"{config['pretraining']['weight']:g}"),
        ("seed", str(config["seed"])),
        ("devices", devices),
        ("revision", str(versions.get("git_revision") or "not in a checkout")),
        ("folder", run.workdir),
    ]


def _methods(config: Mapping[str, Any]) -> str:
    """Returns the methods' names, with their tasks where there are several."""
    found = tasks_by_method(config)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{method}: {', '.join(tasks)}" for method, tasks in found.items())


def _scorer(scorer: dict[str, Any]) -> str:
    if parts := scorer["options"].get("scorers"):
        weights = scorer["options"]["weights"]
        return " + ".join(f"{weights[name]:g} {_scorer(part)}" for name, part in parts.items())
    return f"{scorer['reward']} ({scorer['path']})" if scorer["path"] else scorer["reward"]


def seconds_by_phase(run: RunData) -> list[tuple[str, float]]:
    """Returns the mean seconds of an iteration's phases, the longest first.

    The first iteration, which compiles, is left out where there are others. Evaluations are of all
    iterations, as they are not made in each.
    """
    rows = [row for row in run.rows if row["step"]]
    rows = rows[1:] or rows
    names = unique(name for row in rows for name in row if name.startswith(SECONDS))
    means = {
        name.removeprefix(SECONDS): sum(row.get(name) or 0.0 for row in rows) / len(rows)
        for name in names
    }
    return sorted(means.items(), key=lambda item: -item[1])


def cost(run: RunData) -> list[tuple[str, str]]:
    """Returns what a run has cost, as names and texts."""
    rows = run.rows
    at_work = sum(
        value for row in rows for name, value in row.items() if name.startswith(SECONDS) and value
    )
    last = rows[-1]["step"] if rows else 0
    config = ml_collections.ConfigDict(run.config)
    images = last * images_per_iteration(config)
    learned = "images of pairs to train on" if pairs_of(config) else "images drawn to train on"
    speeds = [row["images_per_second"] for row in rows if row.get("images_per_second")]
    devices = run.versions.get("devices")
    found = [(learned, f"{images:,}"), ("at work", _duration(at_work))]
    if devices:
        hours = devices * at_work / 3600
        found.append(("devices times hours", f"{hours:.3g} of {run.versions.get('device')}"))
    if speeds:
        found.append(("images a second, median", f"{np.median(speeds):.3g}"))
    if len(rows) > 1 and "time" in rows[0]:
        found.append(("from the first to the last", _duration(rows[-1]["time"] - rows[0]["time"])))
    return found


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def warnings(run: RunData) -> list[str]:
    """Returns the first and the last warning of a run, as it was told them while it trained."""
    if not run.evaluations or run.evaluations[0].step:
        return []
    base, found = run.evaluations[0], []
    for record in run.evaluations[1:]:
        rows = [row for row in run.rows if row["step"] <= record.step]
        if rows and rows[-1]["step"] == record.step:
            fallen = watch.falls(base, record, run.rewarded, rows[-1])
            if text := watch.warning(watch.risen(run.config, rows), fallen):
                found.append(f"Iteration {record.step}: {text}")
    return found if len(found) < 3 else [found[0], f"{found[-1]} ({len(found)} warnings in all)"]


def evaluation_table(run: RunData) -> list[Table]:
    """Returns the scores of the first, the best and the last evaluation, with their changes."""
    if len(run.evaluations) < 2:
        return []
    first, last = run.evaluations[0], run.evaluations[-1]
    best = {row["step"]: row["best"] for row in run.rows if row.get("best") is not None}
    steps = {record.step: record for record in run.evaluations}
    scored = [step for step in best if step in steps]
    middle = steps[max(scored, key=best.__getitem__)] if scored else last
    shown = list({record.step: record for record in (first, middle, last)}.values())
    head = ["set", "scorer", *(f"iteration {record.step}" for record in shown), "change", "reward"]
    if middle.step not in (first.step, last.step):
        head[2 + shown.index(middle)] += " (best)"
    rows = []
    for name, scores in last.scores.items():
        for scorer, after in scores.items():
            cells = [_cell(record, name, scorer) for record in shown]
            before = first.scores.get(name, {}).get(scorer)
            change = ""
            same = first.prompts.get(name) == last.prompts[name]
            if before is not None and same and comparable(first, last, f"{name}/{scorer}"):
                change = _interval(last.prompts[name], after - before, "+")
            rewards = ", ".join(run.rewarded.get(scorer, [])) or "never"
            rows.append([name, scorer, *cells, change, rewards])
    return [Table("", head, rows)]


def _cell(record, name: str, scorer: str) -> str:
    scores = record.scores.get(name, {}).get(scorer)
    if scores is None:
        return ""
    missing = unscored(record, name, scorer)
    without = f"{missing} of {len(scores)} without a score" if missing else ""
    return ", ".join(filter(None, (_interval(record.prompts[name], scores, ""), without)))


def _interval(prompts: Sequence[str], values: np.ndarray, sign: str) -> str:
    """Formats a mean with its interval."""
    bootstrap = Bootstrap(prompts)
    value, low, high = bootstrap.interval(bootstrap.mean(values), values)
    if math.isnan(value):
        return ""
    text = f"{value:{sign}.3f}"
    return text if math.isnan(low) else f"{text} [{low:{sign}.3f}, {high:{sign}.3f}]"


def comparison_tables(rows: Sequence[Measurement]) -> list[Table]:
    """Returns the tables of what evaluate.py measured."""
    found = []
    for measure, name in unique((row.measure, row.set) for row in rows):
        chosen = [row for row in rows if (row.measure, row.set) == (measure, name)]
        by_key = {(row.model, row.scorer): row for row in chosen}
        scorers = unique(row.scorer for row in chosen)
        title = f"{name}: {tables.TITLES.get(measure, 'mean score')}"
        lines = [
            [model, *(tables.cell(by_key.get((model, scorer))) for scorer in scorers)]
            for model in unique(row.model for row in chosen)
        ]
        found.append(Table(title, ["model", *scorers], lines))
    return found
