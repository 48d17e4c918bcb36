"""Evaluates a run while it trains, keeps the evaluations, and warns of rewards that are fooled."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import logging
from PIL import Image

from diffusionrl_jax.algorithms import tasks_by_method
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.distributed import processes
from diffusionrl_jax.evaluation import diversity, probe, records, watch
from diffusionrl_jax.evaluation.judges import rewarded_by
from diffusionrl_jax.evaluation.observation import Observer
from diffusionrl_jax.experiments.experiment import Experiment
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.monitoring.metrics import read_rows

FALLS = "watch/falls"


def make_probe(experiment: Experiment) -> probe.Probe:
    """Makes the probe of an experiment that still has its base model, with its tasks' prompts."""
    policy, config = experiment.policy, experiment.config
    count = probe.chains(policy.mesh.size, config.microbatch.sample)
    sources = experiment.sources
    prompts = [sources[n % len(sources)][n // len(sources)] for n in range(count)]
    return probe.Probe(policy, config.sampler, prompts)


class Watcher:
    """Evaluates what a run has trained. Only the first process reads and writes files.

    Args:
      config: the experiment.
      observer: evaluates parameters.
      workdir: the run's folder.
      start_step: the first step that is evaluated, 0 for a new run. Later evaluations that an
        earlier run has left are removed.

    Attributes:
      fallen: what the last evaluation found worse than with the base model, from `watch.falls`.
    """

    def __init__(self, config: Config, observer: Observer, workdir: str, start_step: int):
        self._config, self._observer, self._workdir = config, observer, workdir
        self._rewarded = rewarded_by(config.tasks, config.evaluation.scorers)
        self._base: records.Record | None = None
        self._rows: list[Mapping[str, float]] = []
        self.fallen: list[str] = []
        self._warned = False
        if jax.process_index() == 0:
            records.remove_records(workdir, start_step)
            if start_step:
                self._read(start_step)
        if (
            observer.compared_by == diversity.PIXELS
            and not start_step
            and observer.evaluator.prompts
        ):
            logging.info("No scorer has a CLIP: the diversity of pictures is that of their pixels.")

    def _read(self, start_step: int) -> None:
        """Reads what an earlier run has left."""
        try:
            rows = read_rows(self._workdir)
            self._base = records.read_record(self._workdir, 0)
        except (FileNotFoundError, UserError) as error:
            logging.warning(
                "This run is not compared with its base model, of which nothing is kept (%s).",
                error,
            )
        else:
            self._rows = [row for row in rows if row["step"] < start_step]

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Remembers an iteration's metrics."""
        self._rows.append({"step": step} | dict(values))

    def evaluate(
        self, params: Mapping[str, Parameters], step: int
    ) -> tuple[dict[str, float], dict[str, Image.Image]]:
        """Evaluates parameters, and keeps what is to be seen of them.

        Args:
          params: the parameters by network.
          step: the iteration after which they are.

        Returns:
          What is logged, and a picture of each set.
        """
        evaluation, record, probed = self._observer(params, step)
        values, grids = self._observer.evaluator.logged(evaluation)
        if jax.process_index() == 0 and record.prompts:
            records.write_record(self._workdir, record)
        if step == 0:
            self._base = record
        base, self.fallen = self._base, []
        if base is None:
            values |= {f"watch/{name}": value for name, value in probed.items()}
        else:
            self._warn_of_other_settings(base, record)
            values |= watch.signals(base, record, self._rewarded, probed)
            self.fallen = watch.falls(base, record, self._rewarded, values)
            values[FALLS] = float(len(self.fallen))
        broken = base is not None and bool(watch.lost_scores(base, record))
        if processes.gather(np.array(broken))[0]:  # All follow process 0's reading.
            values["best"] = math.nan  # The mean is over the pictures that are left.
        return values, grids

    def _warn_of_other_settings(self, base: records.Record, record: records.Record) -> None:
        """Warns, once, of what is not compared with the base model."""
        if (changed := watch.not_compared(base, record)) and not self._warned:
            self._warned = True
            logging.warning(
                "The base model was evaluated by another config.evaluation: %s are not compared "
                "with it.",
                ", ".join(changed),
            )

    def warning(self, saved: Sequence[int]) -> str:
        """Returns a line about rewards that seem to be fooled, by the last evaluation; or nothing.

        All processes must call it, and get the same.

        Args:
          saved: the iterations of which there are checkpoints.
        """
        text = watch.warning(watch.risen(self._config, self._rows), self.fallen)
        if not processes.gather(np.array(bool(text)))[0]:  # All follow process 0's reading.
            return ""
        return f"{text} {self._advice(saved)}"

    def _advice(self, saved: Sequence[int]) -> str:
        """Says which checkpoint to go back to, and what to hold the policy with."""
        sound = [row["step"] for row in self._rows if row.get(FALLS) == 0.0 and row["step"]]
        kept = [step for step in saved if step in sound]
        start = f"go back to {self._workdir}@{kept[-1]}" if kept else "start anew"
        fields = self._config.algorithm
        holds = [
            f"config.algorithm.{method}.{name} (now {fields[method][name]:g})"
            for method in tasks_by_method(self._config)
            for name in ("kl_weight", "reference_weight")
            if name in fields[method]
        ]
        holds.append(f"config.pretraining.weight (now {self._config.pretraining.weight:g})")
        return (
            f"Look at the pictures; to mend it, {start}, raise {' or '.join(holds)}, or lower "
            f"config.optimizer.learning_rate."
        )
