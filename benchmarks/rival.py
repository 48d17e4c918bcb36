"""TRL's worker, a process with an environment of its own."""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORKER = Path(__file__).with_name("trl_ddpo.py")
# Float32 scores [n] of pictures, float32 [n, height, width, 3] in [0, 1], and their n prompts.
Reward = Callable[[np.ndarray, Sequence[str]], np.ndarray]


class Rival:
    """Talks with a worker that runs; `start` starts one.

    Args:
      process: the worker.
      settings: what it is to do, see `trl_ddpo.py`.
      reward: answers the worker's questions; without one it asks none.

    Attributes:
      about: its description of its set-up.
    """

    def __init__(
        self, process: subprocess.Popen, settings: Mapping[str, Any], reward: Reward | None
    ):
        self._process, self._reward = process, reward
        self._write(json.dumps(settings))
        self.about = self._read()

    def iterate(self) -> dict[str, Any]:
        """Runs an iteration, and returns what `trl_ddpo.py` measured of it."""
        self._write("")
        while "pictures" in (answer := self._read()):
            scores = self._reward(np.load(answer["pictures"]), answer["prompts"])
            self._write(json.dumps(np.asarray(scores, float).tolist()))
        return answer

    def save(self, folder: str) -> None:
        """Saves the UNet into a folder, as diffusers does."""
        self._write(folder)
        self._read()

    def _write(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # Reading says with what status it ended.
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"TRL's worker ended with status {self._process.wait()}.")
        return json.loads(line)


@contextlib.contextmanager
def start(
    python: str, settings: Mapping[str, Any], reward: Reward | None = None
) -> Iterator[Rival]:
    """Starts a worker, and ends it with the context.

    Args:
      python: of its environment.
      settings: see `trl_ddpo.py`.
      reward: is asked where the settings have a folder "exchange".

    Raises:
      RuntimeError: the worker ended early; its own message is on standard error.
    """
    # Nothing of this environment may leak into the other.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "XLA"))}
    environment |= {"OMP_NUM_THREADS": str(settings["threads"]), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [python, str(WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    with process:
        try:
            yield Rival(process, settings, reward)
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
