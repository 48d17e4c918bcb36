"""Checkpoints that survive: saved in the background, restored onto any mesh, whole or not at all.

A thin layer over Orbax. It adds what a long run needs: the newest whole checkpoint is found when
newer ones are damaged, nothing damaged is deleted, and the best checkpoints by a metric are kept.
"""

import collections
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from diffusionrl_jax.data.files import in_bucket, write_whole
from diffusionrl_jax.distributed.processes import true_everywhere

PyTree = Any


class Checkpoints:
    """The checkpoints in one folder, one numbered folder a step.

    Args:
      directory: where they are, on a disk or in a bucket; made by the first save.
      keep_last: how many of the newest are kept.
      keep_best: how many of the best by `best_metric` are kept besides.
      best_metric: the name of the metric, larger is better; needed if `keep_best` is not 0.

    Raises:
      ValueError: `keep_last` is below 1, or `keep_best` is asked for without `best_metric`.
    """

    def __init__(
        self,
        directory: str,
        keep_last: int = 2,
        keep_best: int = 0,
        best_metric: str | None = None,
    ):
        if keep_last < 1:
            raise ValueError(f"keep_last is {keep_last}: keep at least 1 checkpoint.")
        if keep_best and not best_metric:
            raise ValueError(
                f"keep_best={keep_best} needs best_metric: name the metric to keep by."
            )
        path = epath.Path(directory)
        self.directory = path if in_bucket(path) else path.absolute()
        self.best_metric = best_metric if keep_best else None
        self._keep = _KeepLastAndBest(keep_last, keep_best)
        self._metrics_file = self.directory / "metrics.json"
        self._broken_steps: list[int] = []
        self._opened: ocp.CheckpointManager | None = None

    @property
    def _manager(self) -> ocp.CheckpointManager:
        if self._opened is None:
            self._keep.metrics = self._read_metrics()
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self._keep, enable_async_checkpointing=True
            )
            # Named and typed here, or Orbax guesses both from the folders, damaged ones too.
            handlers = {"state": ocp.PyTreeCheckpointHandler()}
            self._opened = ocp.CheckpointManager(
                self.directory, options=options, item_handlers=handlers
            )
        return self._opened

    def steps(self) -> tuple[int, ...]:
        """The steps whose save was completed, ascending; damage done later is not looked for."""
        return tuple(sorted(self._manager.all_steps())) if self.directory.exists() else ()

    def save(self, step: int, state: PyTree, metrics: Mapping[str, float] | None = None) -> bool:
        """Starts saving the state in the background; the state may be donated at once.

        Checkpoints that the last `restore` found broken are renamed to "<step>.broken" first, so
        that the run can pass through those steps again.

        Args:
          step: how many steps the state has been trained for.
          state: any pytree of arrays and numbers, sharded or not; None and empty arrays may occur.
          metrics: numbers by name; only `best_metric` is used. NaN counts as the worst.

        Returns:
          False if this very step is saved already, and nothing was done.

        Raises:
          ValueError: a later step exists, or `best_metric` is not among the metrics.
        """
        manager = self._manager
        self._move_broken_aside()
        latest = manager.latest_step()
        if latest is not None and step <= latest:
            if step in manager.all_steps():
                return False
            raise ValueError(
                f"Cannot save step {step} in {self.directory}: it holds the later step {latest}, of"
                " another run. Choose an empty folder, or resume from it."
            )
        if self.best_metric:
            if self.best_metric not in (metrics or {}):
                raise ValueError(
                    f"Checkpoints are kept by {self.best_metric!r}, which is not among the metrics"
                    f" {sorted(metrics or {})}: mend best_metric."
                )
            self._keep.metrics[step] = float(metrics[self.best_metric])
            self._write_metrics()
        arguments = ocp.args.PyTreeSave(_without_empty(state))
        return manager.save(step, args=ocp.args.Composite(state=arguments))

    def restore(self, abstract_state: PyTree) -> tuple[int, PyTree] | None:
        """The newest whole checkpoint; a broken one is passed over with a printed warning.

        Args:
          abstract_state: the state's pytree with a `jax.ShapeDtypeStruct` with sharding for each
            array; the arrays are placed by it. What is `ocp.PLACEHOLDER` instead
            is passed over and stays it.

        Returns:
          The step and the state, bit for bit as saved; None if there is no checkpoint at all.

        Raises:
          RuntimeError: there are checkpoints, and none can be restored; or the newest does not fit
            into the devices' memory.
        """
        failures = {}
        for step in reversed(self.steps()):
            failure = None
            try:
                state = self.restore_step(step, abstract_state)
            except Exception as error:  # Orbax, TensorStore and JSON each raise their own kinds.
                failure = _first_line(error)
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
        """Raises a FileNotFoundError if there is no such step."""
        if step not in self.steps():
            raise FileNotFoundError(
                f"There is no checkpoint of step {step} in {self.directory}: choose one of"
                f" {list(self.steps())}."
            )

    def restore_step(self, step: int, abstract_state: PyTree) -> PyTree:
        """The state of one step, as `restore` gives it.

        Raises:
          FileNotFoundError: there is no such step.
          Exception: whatever Orbax raises if the checkpoint is damaged or of another structure.
        """
        self.check_step(step)
        item = _without_empty(abstract_state)
        arguments = ocp.args.PyTreeRestore(
            item, restore_args=ocp.checkpoint_utils.construct_restore_args(item)
        )
        restored = self._manager.restore(step, args=ocp.args.Composite(state=arguments)).state
        return jax.tree.map(
            _fill_empty, abstract_state, restored, is_leaf=lambda leaf: leaf is None
        )

    def best_step(self) -> int:
        """The step whose checkpoint has the largest `best_metric`.

        Raises:
          ValueError: no checkpoint has been evaluated.
        """
        metrics = self._read_metrics()
        ranked = [step for step in self.steps() if math.isfinite(metrics.get(step, math.nan))]
        if not ranked:
            raise ValueError(
                f"None of the checkpoints in {self.directory} has been evaluated: choose one of the"
                f" steps {list(self.steps())}."
            )
        return max(ranked, key=lambda step: (metrics[step], step))

    def wait(self) -> None:
        """Returns when the running save is complete; raises what went wrong in it."""
        if self._opened is not None:
            self._opened.wait_until_finished()

    def close(self) -> None:
        """Waits for the running save and lets the folder go."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _move_broken_aside(self) -> None:
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

    def _read_metrics(self) -> dict[int, float]:
        try:
            content = json.loads(self._metrics_file.read_text())
            return {int(step): float(value) for step, value in content.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError) as error:
            print(f"WARNING: {self._metrics_file} is unreadable ({error})", file=sys.stderr)
            return {}

    def _write_metrics(self) -> None:
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            content = {str(step): value for step, value in sorted(self._keep.metrics.items())}
            write_whole(self._metrics_file, json.dumps(content).encode())


class _KeepLastAndBest(checkpoint_managers.PreservationPolicy):
    """Which checkpoints stay. The metrics are not left to Orbax, which keeps them in the steps'
    folders: one damaged folder then makes all of them unreadable.
    """

    def __init__(self, last: int, best: int):
        self.last, self.best = last, best
        self.metrics: dict[int, float] = {}

    def should_preserve(self, checkpoints: Sequence, *, context) -> Sequence[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        ranked = sorted((step for step in steps if step in self.metrics), key=self._rank)
        kept = {*sorted(steps)[-self.last :], *(ranked[-self.best :] if self.best else ())}
        return [step in kept for step in steps]

    def _rank(self, step: int) -> tuple[float, int]:
        value = self.metrics[step]
        return (-math.inf if math.isnan(value) else value, step)


def _without_empty(tree: PyTree) -> PyTree:
    """Orbax refuses arrays without elements, and there is nothing in them to save."""
    return jax.tree.map(lambda leaf: leaf if math.prod(np.shape(leaf)) else None, tree)


def _fill_empty(expected, restored):
    """The restored leaf; zeros without elements for what was not saved."""
    if restored is not None or expected is None:
        # Orbax compares the shapes of sharded arrays only.
        if isinstance(restored, np.ndarray) and restored.shape != expected.shape:
            raise ValueError(f"an array of {restored.shape} is saved instead of {expected.shape}")
        return restored
    return jax.device_put(
        jnp.zeros(expected.shape, expected.dtype), getattr(expected, "sharding", None)
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"


class PreemptionGuard:
    """Turns SIGTERM and SIGINT into a question that the training loop asks after each step.

        with PreemptionGuard() as guard:
            for step in ...:
                ...
                if guard.should_stop():
                    checkpoints.save(...)
                    break

    A second SIGINT interrupts at once.
    """

    def __init__(self):
        self._received = collections.Counter()
        self._previous = {}

    def __enter__(self) -> "PreemptionGuard":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, _):
        self._received[number] += 1
        if self._received[signal.SIGINT] > 1:
            raise KeyboardInterrupt
        message = f"\n{signal.Signals(number).name}: saving and stopping after this step\n"
        os.write(2, message.encode())  # print is not safe in a signal handler.

    def should_stop(self) -> bool:
        """Whether any process has been told to stop. With several, all must ask together."""
        return not true_everywhere(not self._received)


def make_writable(path: str, flag: str) -> epath.Path:
    """Makes the folder and tries it, before hours of compute end in an error.

    Args:
      path: the folder, local or `gs://`.
      flag: what named it.

    Returns:
      The folder.

    Raises:
      ValueError: the folder cannot be made or written to.
    """
    folder = epath.Path(path)
    probe = folder / f".writable-{platform.node()}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"0" * 4096)
        probe.unlink()
    except Exception as error:  # Buckets' libraries each raise their own kinds.
        reason = getattr(error, "strerror", None) or _first_line(error)
        raise ValueError(
            f"{flag}={path} cannot be written to ({reason}): choose a folder that you can write to."
        ) from None
    return folder


def write_run_information(workdir: str, config: Mapping[str, Any]) -> None:
    """Writes config.json and versions.json, what is needed to repeat the run.

    Args:
      workdir: an existing folder.
      config: an `ml_collections.ConfigDict` or a dict; values that JSON lacks become strings.
    """
    if jax.process_index():
        return
    plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    packages = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    versions = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "git_revision": git_revision(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }
    folder = epath.Path(workdir)
    content = json.dumps(plain, indent=2, default=str) + "\n"
    write_whole(folder / "config.json", content.encode())
    write_whole(folder / "versions.json", (json.dumps(versions, indent=2) + "\n").encode())


def git_revision() -> str | None:
    """The revision of this package's checkout, "+changes" if it is modified; None without one."""
    root = pathlib.Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if pathlib.Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None  # Installed into some other project's folder.
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None
