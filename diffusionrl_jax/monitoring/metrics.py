"""Metrics on disk: TensorBoard events, and the same scalars as rows of metrics.jsonl."""

import json
import math
import pathlib
import socket
import tempfile
import time
from collections.abc import Mapping

import jax
import numpy as np
from absl import logging
from etils import epath
from PIL import Image
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)

from diffusionrl_jax.data.files import in_bucket, write_whole
from diffusionrl_jax.monitoring.appending import AppendedFile, as_record

ROWS = "metrics.jsonl"
UPLOAD_SECONDS = 60.0


class MetricWriter:
    """Writes a run's metrics into its folder. Only the first process writes anything.

    A run that resumes at `start_step` passes through that step and the later ones again, so what an
    earlier run wrote for them is removed: no part of a curve is there twice.

    What cannot be written, because a disk is full for example, ends no run: there is one warning,
    and the records wait in memory for the next time.

    Args:
      workdir: the run's folder, which is made if it is missing. In a bucket nothing can be appended
        to: the files are then kept here, and copied there every minute and at the end.
      start_step: the first step that will be written, 0 for a new run.
    """

    def __init__(self, workdir: str, start_step: int = 0):
        self._is_writer = jax.process_index() == 0
        if not self._is_writer:
            return
        self._warned = False
        self._workdir = epath.Path(workdir)
        self._workdir.mkdir(parents=True, exist_ok=True)
        _keep_rows_before(self._workdir / ROWS, start_step)
        self._copy, self._copied = None, time.monotonic()
        folder = pathlib.Path(workdir)
        if in_bucket(workdir):
            self._copy = tempfile.TemporaryDirectory()
            folder = pathlib.Path(self._copy.name)
            if (self._workdir / ROWS).exists():
                (folder / ROWS).write_bytes((self._workdir / ROWS).read_bytes())
        self._rows = AppendedFile(folder / ROWS)
        # Events are not written by tensorboardX's thread: a full disk ends it, its queue then
        # fills, and the run hangs. The names of runs that start in the same second differ in the
        # last part.
        (folder / "tensorboard").mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{start_step}"
        self._events = AppendedFile(folder / "tensorboard" / name)
        self._append_events(
            Event(wall_time=time.time(), file_version="brain.Event:2"),
            Event(step=start_step, session_log=SessionLog(status=SessionLog.START)),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers by name as one row; they are Python's, or arrays of one element.

        NaN and infinity become null in metrics.jsonl, since JSON has neither.
        """
        if not self._is_writer:
            return
        numbers = {name: np.asarray(value).item() for name, value in values.items()}
        now = time.time()
        row = {"step": int(step), "time": round(now, 3)}
        row |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._append(self._rows, (json.dumps(row) + "\n").encode())
        self._append_events(
            *(
                Event(step=step, wall_time=now, summary=summary.scalar(name, value))
                for name, value in numbers.items()
            )
        )
        if time.monotonic() > self._copied + UPLOAD_SECONDS:
            self._upload()

    def images(self, step: int, values: Mapping[str, Image.Image | np.ndarray]) -> None:
        """Writes pictures by name; they are Pillow's, or uint8 [height, width, 3]."""
        if not self._is_writer:
            return
        for name, image in values.items():
            picture = summary.image(name, np.asarray(image), dataformats="HWC")
            self._append_events(Event(step=step, wall_time=time.time(), summary=picture))

    def close(self) -> None:
        """Writes what has been held back, and closes the files."""
        if self._is_writer:
            for file in (self._rows, self._events):
                self._append(file, b"")
                file.close()
            self._upload()

    def _append_events(self, *events: Event) -> None:
        self._append(self._events, b"".join(as_record(e.SerializeToString()) for e in events))

    def _append(self, file: AppendedFile, content: bytes) -> None:
        try:
            file.append(content)
        except OSError as error:
            self._warn(error)

    def _upload(self) -> None:
        if self._copy is None:
            return
        self._copied = time.monotonic()
        root = pathlib.Path(self._copy.name)
        try:
            for path in root.rglob("*"):
                if path.is_file():
                    target = self._workdir / str(path.relative_to(root))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(path.read_bytes())
        except Exception as error:  # Buckets' libraries each raise their own kinds.
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            logging.warning("Metrics cannot be written to %s now: %s", self._workdir, error)
        self._warned = True


def read_rows(workdir: str) -> list[dict]:
    """Reads the rows of a run's metrics.jsonl.

    Lines that are not rows, such as a last one that a kill cut short, are left out.

    Raises:
      FileNotFoundError: there is no such file.
    """
    rows = []
    # A line with bytes that are not UTF-8 is not JSON either.
    for line in (epath.Path(workdir) / ROWS).read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _keep_rows_before(path: epath.Path, step: int) -> None:
    """Removes the rows of a step and of later ones from a file."""
    if path.exists():
        rows = [json.dumps(row) + "\n" for row in read_rows(str(path.parent)) if row["step"] < step]
        write_whole(path, "".join(rows).encode())
