"""Checkpoints: saved in the background, restored onto any mesh, whole or not at all.

This is a thin layer over Orbax. It adds what a long run needs: what is restored is what was saved;
the newest whole checkpoint is found when newer ones are damaged; nothing damaged is deleted;
nothing that is not finite is saved; and the best checkpoints by a metric are kept.

A step's folder holds Orbax's "state" and, beside it, "record": the metrics that the state was saved
with, and a digest of each of its arrays.
"""

import contextlib
import math
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from diffusionrl_jax.data.files import in_bucket, readable_size
from diffusionrl_jax.data.literal_path import LiteralPath
from diffusionrl_jax.distributed.digests import digests, not_finite
from diffusionrl_jax.distributed.processes import gather, true_everywhere
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.runs.checkpoint_failures import (
    SaveError,
    first_line,
    is_of_the_file_system,
    reason,
    remove_unfinished,
    remove_what_is_still_written,
)
from diffusionrl_jax.runs.checkpoint_records import (
    RECORD,
    DamagedError,
    KeepLastAndBest,
    Score,
    read_record,
    read_score,
    seal,
)
from diffusionrl_jax.runs.checkpoint_room import check_room
from diffusionrl_jax.runs.checkpoint_states import check_digests, fill_empty, size_of, without_empty

PyTree = Any
STATE = "state"


class Checkpoints:
    """The checkpoints in one folder, which has one numbered folder for each step.

    Args:
      directory: the folder, on a disk or in a bucket. The first save makes it.
      keep_last: how many of the newest checkpoints are kept.
      keep_best: how many of the best by `best_metric` are kept besides. A checkpoint whose metric
        cannot be read is never deleted for others.
      best_metric: the name of the metric; larger is better. It is needed if `keep_best` is not 0.
      scored_by: names the settings that the metric is by. Checkpoints that were saved with another
        name have other scores, which are not compared with these; the best of them are kept too.

    Raises:
      UserError: `keep_last` is below 1, `keep_best` is given without `best_metric`, or the folder's
        path has a backslash, which TensorStore takes for a slash.
    """

    def __init__(
        self,
        directory: str,
        keep_last: int = 2,
        keep_best: int = 0,
        best_metric: str | None = None,
        scored_by: str | None = None,
    ):
        if keep_last < 1:
            raise UserError(f"keep_last is {keep_last}: keep at least 1 checkpoint.")
        if keep_best and not best_metric:
            raise UserError(f"keep_best={keep_best} needs best_metric: name the metric to keep by.")
        if "\\" in str(directory):
            raise UserError(
                f"Checkpoints cannot be kept in {directory}: its path has a backslash. Choose a "
                "folder without."
            )
        path = LiteralPath(directory)
        self.directory = path if in_bucket(path) else path.absolute()
        self.best_metric = best_metric
        self._keep = KeepLastAndBest(keep_last, keep_best, self._score)
        self._scored_by = scored_by
        self._scores: dict[int, Score | None] = {}
        self._broken_steps: list[int] = []
        self._opened: ocp.CheckpointManager | None = None
        self._saving: tuple[int, int] | None = None  # The step and its bytes.

    @property
    def _manager(self) -> ocp.CheckpointManager:
        if self._opened is None:
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self._keep, enable_async_checkpointing=True
            )
            # The items are named and typed here. Orbax would otherwise guess both from the folders,
            # of which some may be damaged.
            handlers = {
                STATE: ocp.PyTreeCheckpointHandler(),
                RECORD: ocp.JsonCheckpointHandler(),
            }
            self._opened = ocp.CheckpointManager(
                self.directory, options=options, item_handlers=handlers
            )
        return self._opened

    def steps(self) -> tuple[int, ...]:
        """Returns the steps whose save was completed, ascending. Later damage is not looked for."""
        return tuple(sorted(self._manager.all_steps())) if self.directory.exists() else ()

    def whole_steps(self) -> tuple[int, ...]:
        """Returns the `steps` except those that the last `restore` found broken."""
        return tuple(step for step in self.steps() if step not in self._broken_steps)

    def clean_up(self) -> None:
        """Removes what was being written when a run was killed.

        Only the run that trains here may call it, and all of its processes must.
        """
        if jax.process_index() == 0 and self.directory.exists():
            remove_unfinished(self.directory)
        true_everywhere(True)  # This is a barrier: nobody writes before.

    def check_room(self, state: PyTree) -> None:
        """Refuses a disk without room for one more checkpoint, and warns of one without for all.

        Args:
          state: the state, as in `save`, or its shapes.

        Raises:
          SaveError: there is no room. It is raised in all processes alike.
        """
        # While one more is written, none of those that are kept has been removed yet.
        most = self._keep.last + self._keep.best + 1
        check_room(self.directory, size_of(state), most - len(self.steps()))

    def save(self, step: int, state: PyTree, metrics: Mapping[str, float] | None = None) -> bool:
        """Starts saving the state in the background. The state may be donated at once.

        Checkpoints that the last `restore` found broken are first renamed to "<step>.broken", so
        that the run can pass through those steps again.

        Args:
          step: how many steps the state has been trained for.
          state: any pytree of arrays and numbers, sharded or not; None and arrays without elements
            may occur.
          metrics: numbers by name, which are kept with the checkpoint; NaN counts as the worst.

        Returns:
          False if this step has been saved already, so that nothing was done.

        Raises:
          UserError: a later step exists, or `best_metric` is not among the metrics.
          FloatingPointError: a number of the state is not finite. Nothing is saved.
          SaveError: the folder cannot be written to, or the save before this one failed.
        """
        if self._saving:
            self.wait()
        manager = self._manager
        self._move_broken_aside()
        latest = manager.latest_step()
        if latest is not None and step <= latest:
            if step in manager.all_steps():
                return False
            raise UserError(
                f"Cannot save step {step} in {self.directory}: it holds the later step {latest}, of"
                " another run. Choose an empty folder, or resume from it."
            )
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        if self._keep.best and self.best_metric not in metrics:
            raise UserError(
                f"Checkpoints are kept by {self.best_metric!r}, which is not among the metrics"
                f" {sorted(metrics)}: mend best_metric."
            )
        state = without_empty(state)
        found = digests(state)
        if broken := not_finite(found):
            raise FloatingPointError(
                f"{broken[0]} is not finite after step {step} ({len(broken)} of {len(found)} "
                "arrays are not): it is not saved."
            )
        best = metrics.get(self.best_metric or "", math.nan)
        self._scores[step] = Score(best, self._scored_by)
        record = {"metrics": metrics, "digests": found, "scored_by": self._scored_by}
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), record=ocp.args.JsonSave(seal(record))
        )
        self._saving = step, size_of(state)
        try:
            return manager.save(step, args=arguments)
        except Exception as error:
            raise self._failed(error) from error

    def is_best(self, score: float) -> bool:
        """Returns whether a checkpoint with this score would be kept as one of the best.

        All processes must call it.

        Args:
          score: the value of `best_metric`.
        """
        if not self._keep.best or not math.isfinite(score):
            return False
        better = [other for other in self._evaluated()[0].values() if other >= score]
        # All follow process 0's reading.
        return bool(gather(np.array(len(better) < self._keep.best))[0])

    def restore(self, abstract_state: PyTree) -> tuple[int, PyTree] | None:
        """Restores the newest whole checkpoint, and warns of each broken one that it passes over.

        Args:
          abstract_state: the state's pytree with a `jax.ShapeDtypeStruct` in place of each array,
            whose sharding says where the array is placed. `ocp.PLACEHOLDER` in place of an array
            means that it is not read; it is then in the result, too.

        Returns:
          The step and the state, bit for bit as it was saved; None if there is no checkpoint at
          all.

        Raises:
          RuntimeError: there are checkpoints, but none can be restored, or the newest does not fit
            into the devices' memory.
        """
        failures = {}
        for step in reversed(self.steps()):
            failure = None
            try:
                state = self.restore_step(step, abstract_state)
            except Exception as error:  # Orbax, TensorStore and JSON each raise their own kinds.
                failure = str(error) if isinstance(error, DamagedError) else first_line(error)
                if "RESOURCE_EXHAUSTED" in failure:
                    raise RuntimeError(
                        f"Checkpoint {step} in {self.directory} does not fit into the devices' "
                        f"memory: take more of them, or a larger config.mesh.fsdp. ({failure})"
                    ) from error
            if true_everywhere(failure is None):
                self._broken_steps = list(failures)
                return step, state
            failures[step] = failure or "it failed in another process"
            print(
                f"WARNING: checkpoint {self.directory / str(step)} cannot be restored, trying the"
                f" one before ({failures[step]})",
                file=sys.stderr,
                flush=True,
            )
        if failures:
            reasons = "; ".join(f"step {step}: {failure}" for step, failure in failures.items())
            raise RuntimeError(
                f"None of the checkpoints in {self.directory} can be restored: they are damaged, or"
                f" saved with another configuration (see config.json). {reasons}"
            )
        return None

    def check_step(self, step: int) -> None:
        """Refuses a step that is not there.

        Raises:
          FileNotFoundError: there is no such step.
        """
        if step not in self.steps():
            raise FileNotFoundError(
                f"There is no checkpoint of step {step} in {self.directory}: choose one of"
                f" {list(self.steps())}."
            )

    def restore_step(self, step: int, abstract_state: PyTree) -> PyTree:
        """Restores the state of one step, as `restore` does.

        Raises:
          FileNotFoundError: there is no such step.
          DamagedError: what was read is not what was saved.
          Exception: Orbax raises errors of several kinds if the checkpoint is damaged or has
            another structure.
        """
        self.check_step(step)
        item = without_empty(abstract_state)
        arguments = ocp.args.PyTreeRestore(
            item, restore_args=ocp.checkpoint_utils.construct_restore_args(item)
        )
        failure = None
        try:
            record = read_record(self.directory, step)
            items = ocp.args.Composite(state=arguments)
            restored = self._manager.restore(step, args=items)["state"]
        except Exception as error:
            failure = error
        # All processes compute the digests together, but only some may have failed to read.
        if not true_everywhere(failure is None):
            raise failure or DamagedError("it cannot be read in another process")
        check_digests(restored, record)
        return jax.tree.map(fill_empty, abstract_state, restored, is_leaf=lambda leaf: leaf is None)

    def best_step(self) -> int:
        """Returns the step whose checkpoint has the largest `best_metric`, by the present settings.

        Raises:
          UserError: no checkpoint has been evaluated by them.
        """
        scores, others = self._evaluated()
        if not scores:
            by = f" by the settings of now, but {others} by others" if others else ""
            raise UserError(
                f"None of the checkpoints in {self.directory} has been evaluated{by}: choose one "
                f"of the steps {list(self.steps())}."
            )
        return max(scores, key=lambda step: (scores[step], step))

    def scored_otherwise(self) -> list[int]:
        """Returns the steps that were evaluated by other settings than `scored_by`."""
        return self._evaluated()[1]

    def check(self) -> None:
        """Raises the error of a save that has ended meanwhile; it does not wait for one.

        Raises:
          SaveError: the save failed.
        """
        if self._saving:
            assert self._opened is not None  # A save is running.
            if not self._opened.is_saving_in_progress():
                self.wait()

    def wait(self) -> None:
        """Returns once the running save is complete.

        Raises:
          SaveError: the save failed.
        """
        if self._saving:
            assert self._opened is not None  # A save is running.
            try:
                self._opened.wait_until_finished()
            except Exception as error:
                raise self._failed(error) from error
            self._saving = None

    def close(self) -> None:
        """Waits for the running save, and releases the folder."""
        if self._opened is not None:
            opened, self._opened = self._opened, None
            opened.close()

    def _failed(self, error: Exception) -> Exception:
        """Returns the error to raise for a failed save, and removes what the save has written."""
        assert self._saving is not None
        (step, size), self._saving = self._saving, None
        if not is_of_the_file_system(error):
            return error
        steps = self.whole_steps()
        with contextlib.suppress(Exception):  # Closing raises the error once more.
            self.close()
        if jax.process_index() == 0:
            remove_what_is_still_written(self.directory)
        goes_on = f"goes on after iteration {steps[-1]}" if steps else "begins again"
        return SaveError(
            f"Checkpoint {step} cannot be saved in {self.directory}, where it needs up to "
            f"{readable_size(size)} ({reason(error)}): mend that, and the same command {goes_on}."
        )

    def _move_broken_aside(self) -> None:
        """Renames the folders of broken checkpoints; all processes must call it."""
        if not self._broken_steps:
            return
        if jax.process_index() == 0:
            for step in self._broken_steps:
                folder = self.directory / str(step)
                target = folder.with_name(f"{step}.broken")
                while target.exists():
                    target = target.with_name(f"{target.name}.broken")
                folder.rename(target)
        true_everywhere(True)  # A barrier: nobody looks before the folders are renamed.
        self._broken_steps = []
        self._manager.reload()

    def _evaluated(self) -> tuple[dict[int, float], list[int]]:
        """Returns the scores by the present settings, and the steps that have one by others."""
        scores = {step: self._score(step) for step in self.steps()}
        finite = {step: at for step, at in scores.items() if at and math.isfinite(at.value)}
        alike = {step: at.value for step, at in finite.items() if at.by == self._scored_by}
        return alike, [step for step in finite if step not in alike]

    def _score(self, step: int) -> Score | None:
        """Returns a step's score, read once by `read_score`; None if it cannot be read.

        One that does not say what it is by counts as by the present settings.
        """
        if step not in self._scores:
            try:
                score = read_score(self.directory, step, self.best_metric)
                if score.by is None or self._scored_by is None:
                    score = Score(score.value, self._scored_by)
            except DamagedError as error:
                score = None
                print(f"WARNING: {error}: checkpoint {step} is not deleted", file=sys.stderr)
            self._scores[step] = score
        return self._scores[step]
