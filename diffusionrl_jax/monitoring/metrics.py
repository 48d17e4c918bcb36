"""Metrics on disk: TensorBoard events, and the same scalars as rows of metrics.jsonl."""

import json
import math
import pathlib
import tempfile
import time
from collections.abc import Mapping

import jax
import numpy as np
import tensorboardX
from etils import epath
from PIL import Image

from diffusionrl_jax.data.files import in_bucket, write_whole

ROWS = "metrics.jsonl"
UPLOAD_SECONDS = 60.0


class MetricWriter:
    """Writes a run's metrics into its folder; in all processes but the first it writes nothing.

    A run that resumes at `start_step` passes through that step and the later ones again, so what
    an earlier run wrote for them is purged: the curves have no doubled stretch.

    Args:
      workdir: the run's folder, made if missing. Nothing can be appended to in a bucket: for one
        the files are kept here, and copied there every minute and at the end.
      start_step: the first step that will be written, 0 for a new run.
    """

    def __init__(self, workdir: str, start_step: int = 0):
        self._writer = None
        if jax.process_index():
            return
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
        self._rows = (folder / ROWS).open("a", encoding="utf-8")
        # Events of two runs that start in the same second would share a file without the suffix.
        self._writer = tensorboardX.SummaryWriter(
            str(folder / "tensorboard"),
            purge_step=start_step,
            filename_suffix=f".{start_step}",
            flush_secs=10,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers by name, Python's or arrays of one element, as one row.

        NaN and infinity are null in metrics.jsonl, since JSON has neither.
        """
        if self._writer is None:
            return
        row = {"step": int(step), "time": round(time.time(), 3)}
        for name, value in values.items():
            number = np.asarray(value).item()
            self._writer.add_scalar(name, number, step)
            row[name] = number if math.isfinite(number) else None
        self._rows.write(json.dumps(row) + "\n")
        self._rows.flush()  # A killed run keeps all of its rows.
        if time.monotonic() > self._copied + UPLOAD_SECONDS:
            self._upload()

    def images(self, step: int, values: Mapping[str, Image.Image | np.ndarray]) -> None:
        """Writes pictures by name, Pillow's or uint8 [height, width, 3]."""
        if self._writer is not None:
            for name, image in values.items():
                self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        """Writes out what is still held back."""
        if self._writer is not None:
            self._writer.close()
            self._rows.close()
            self._upload()

    def _upload(self) -> None:
        if self._copy is None:
            return
        self._copied = time.monotonic()
        root = pathlib.Path(self._copy.name)
        for path in root.rglob("*"):
            if path.is_file():
                target = self._workdir / str(path.relative_to(root))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())


def read_rows(workdir: str) -> list[dict]:
    """The rows of a run's metrics.jsonl; a last row cut short by a kill is left out."""
    rows = []
    for line in (epath.Path(workdir) / ROWS).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _keep_rows_before(path: epath.Path, step: int) -> None:
    if path.exists():
        rows = [json.dumps(row) + "\n" for row in read_rows(str(path.parent)) if row["step"] < step]
        write_whole(path, "".join(rows).encode())
