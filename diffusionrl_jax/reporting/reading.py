"""Reads what a run has left in its folder."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from absl import logging
from etils import epath

from diffusionrl_jax.data.files import as_path, matching, read_json, split_step
from diffusionrl_jax.evaluation import manifest, records, tables
from diffusionrl_jax.evaluation.judges import rewarded_by
from diffusionrl_jax.evaluation.records import Record
from diffusionrl_jax.evaluation.statistics import Measurement
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.monitoring.metrics import read_rows
from diffusionrl_jax.runs import trained

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RunData:
    """What a report is made from.

    Attributes:
      name: what the run is called in the report.
      workdir: its folder.
      config: what its config.json holds, with the present fields; see `config.of_earlier`.
      versions: what its versions.json holds; empty without one.
      rows: the rows of its metrics.
      evaluations: its evaluations, the base model's first.
      comparisons: for each folder in the workdir that evaluate.py wrote, its name and measurements.
      manifests: what the manifests of those folders say that have one, by the folder's name.
    """

    name: str
    workdir: str
    config: dict[str, Any]
    versions: dict[str, Any]
    rows: list[dict[str, Any]]
    evaluations: list[Record]
    comparisons: dict[str, list[Measurement]]
    manifests: dict[str, str]

    @property
    def tasks(self) -> list[str]:
        """The tasks' names."""
        return list(self.config["tasks"])

    @property
    def rewarded(self) -> dict[str, list[str]]:
        """For each of the evaluation's scorers, the tasks that are rewarded by it."""
        return rewarded_by(self.config["tasks"], self.config["evaluation"]["scorers"])

    def judged(self, task: str) -> list[tuple[str, str]]:
        """Returns the sets and the scorers that judge by what rewards a task."""
        if not self.evaluations:
            return []
        return [
            (name, scorer)
            for name, scores in self.evaluations[-1].scores.items()
            for scorer in scores
            if task in self.rewarded.get(scorer, ())
        ]


def split_runs(texts: Sequence[str]) -> list[str]:
    """Splits "DIR,DIR" at commas, unless the whole text is a folder."""
    found = []
    for text in texts:
        there = as_path(text, "--run").exists() if text else False
        found += [text] if there else text.split(",")
    return found


def read_runs(workdirs: Sequence[str]) -> list[RunData]:
    """Reads several runs, whose names are those of their folders, or their paths.

    Raises:
      UserError: a folder is no run, has no metrics yet, or its config is damaged; or a checkpoint
        is named.
    """
    for workdir in workdirs:
        if step := split_step(workdir)[1]:
            raise UserError(f"--run={workdir}: a report is of a whole run. Leave out @{step}.")
    paths = [as_path(workdir, "--run") for workdir in workdirs]
    if not paths:
        raise UserError("--run names no run: give the folder of one, or of several.")
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(workdir) for workdir in workdirs]
    if len(set(names)) < len(names):
        raise UserError(f"--run names a run twice: {', '.join(names)}.")
    return [_read_run(name, path) for name, path in zip(names, paths, strict=True)]


def _read_run(name: str, folder: epath.Path) -> RunData:
    try:
        config = trained.read_config(str(folder)).to_dict()
        rows = read_rows(str(folder))
    except FileNotFoundError as error:
        raise UserError(f"--run={folder} is not the folder of a run ({error}).") from error
    try:
        versions = read_json(folder / "versions.json")
    except FileNotFoundError:
        versions = {}
    steps = records.recorded_steps(str(folder))
    evaluations = [_unless_damaged(records.read_record, str(folder), n) for n in steps]
    comparisons = {
        entry.name: _unless_damaged(tables.read_csv, entry / tables.CSV)
        for entry in matching(folder, "*")
        if entry.is_dir() and (entry / tables.CSV).exists()
    }
    manifests = {
        name: _unless_damaged(manifest.read_summary, folder / name / manifest.FILE)
        for name in comparisons
        if (folder / name / manifest.FILE).exists()
    }
    return RunData(
        *(name, str(folder), config, versions, rows),
        evaluations=[record for record in evaluations if record is not None],
        comparisons={name: found for name, found in comparisons.items() if found is not None},
        manifests={name: text for name, text in manifests.items() if text is not None},
    )


def _unless_damaged(read: Callable[..., T], *arguments: Any) -> T | None:
    """Returns what is read; None, with a warning, where it is damaged: all else can be shown."""
    try:
        return read(*arguments)
    except UserError as error:
        logging.warning("It is left out: %s", error)
        return None


def as_json(values: Any) -> str:
    """Returns values as they are read best."""
    return json.dumps(values, indent=2, ensure_ascii=False)
