"""Keeps two programs from training in one workdir, on shared disks and in buckets too.

The one that trains writes a small file into the workdir again and again. Another one that finds it
asks: of a process of this very machine, whether that still lives; of another machine, whether the
file still changes. So a killed run leaves nothing behind that anybody would have to remove, and no
two clocks need to agree.
"""

import contextlib
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from diffusionrl_jax.data.files import write_whole
from diffusionrl_jax.distributed.processes import gather, true_everywhere
from diffusionrl_jax.mistakes import UserError

LEASE = "running.json"
BEAT_SECONDS = 10.0
# How long the file of another machine has to stand still: some beats, and what a shared disk may
# show late.
STILL_SECONDS = 35.0


class Lease:
    """A workdir's lease. Where there are several processes all call it, and the first holds it.

    Args:
      workdir: an existing folder, local or `gs://`.
    """

    def __init__(self, workdir: str):
        self._workdir = workdir
        self._path = epath.Path(workdir) / LEASE
        self._own = _identity() | {"id": uuid.uuid4().hex}
        self._beats = 0
        self._stop = threading.Event()

    def __enter__(self) -> "Lease":
        """Takes the lease.

        Raises:
          UserError: another program trains there, or it is not one folder for all processes; in
            every process alike.
        """
        found = _read(self._path) if jax.process_index() == 0 else None
        self._refuse(found if found is not None and _may_live(found, self._path) else None)
        if jax.process_index() == 0:
            self._write()
            threading.Thread(target=self._beat, daemon=True).start()
        if not true_everywhere(self._is_seen()):
            self.__exit__()
            raise UserError(
                f"{self._workdir} is not one folder for all {jax.process_count()} processes: name "
                "one on a shared disk or gs:// by --workdir."
            )
        return self

    def __exit__(self, *_):
        self._stop.set()
        if jax.process_index() == 0:
            # Where that fails, others see that this process is gone.
            with contextlib.suppress(Exception):
                if self._other() is None:
                    self._path.unlink()

    def check(self) -> None:
        """Makes sure that the lease is still this program's: of two that took it together, or one
        that has stood still for long, one finds here that it is not.

        Raises:
          UserError: it is not; in every process alike.
        """
        self._refuse(self._other() if jax.process_index() == 0 else None)

    def _is_seen(self) -> bool:
        """Whether this process sees what the first has written, which a disk may show late."""
        first = gather(np.frombuffer(bytes.fromhex(self._own["id"]), np.uint8))[0]
        if jax.process_index() == 0:
            return True
        deadline = time.monotonic() + STILL_SECONDS
        while (found := _read(self._path)) is None or found["id"] != first.tobytes().hex():
            if time.monotonic() > deadline:
                return False
            time.sleep(1)
        return True

    def _refuse(self, holder: Mapping[str, Any] | None) -> None:
        if gather(np.array(holder is not None)).any():
            whose = "another program's, as process 0 says" if holder is None else _describe(holder)
            raise UserError(
                f"In {self._workdir} another program trains, {whose}: wait for it, stop it, or "
                "choose another --workdir."
            )

    def _other(self) -> dict[str, Any] | None:
        """What another program wrote over this one's file."""
        found = _read(self._path)
        return None if found is None or found["id"] == self._own["id"] else found

    def _write(self) -> None:
        self._beats += 1
        write_whole(self._path, json.dumps(self._own | {"beats": self._beats}).encode())

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            # A full disk, or a bucket out of reach, is for the training's own writes to tell of.
            with contextlib.suppress(Exception):
                if self._other() is None:
                    self._write()


def _identity() -> dict[str, Any]:
    """This process, and the machine by which its number is to be understood."""
    return {
        "host": socket.gethostname(),
        "boot": _first(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text),
        "namespace": _first(lambda: os.readlink("/proc/self/ns/pid")),
        "process": os.getpid(),
        "started": _started(os.getpid()),
    }


def _first(read: Callable[[], str]) -> str:
    """What is read, or nothing on a system without /proc."""
    try:
        return read().strip()
    except OSError:
        return ""


def _started(process: int) -> str:
    """When a process started, in ticks: numbers of processes come again. Empty if it is gone."""
    stat = _first(pathlib.Path(f"/proc/{process}/stat").read_text)
    fields = stat.rpartition(")")[2].split()  # Behind the name, which may have spaces.
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


def _may_live(found: dict[str, Any], path: epath.Path) -> bool:
    own = _identity()
    here = all(found.get(name) == own[name] for name in ("host", "boot", "namespace"))
    if here and own["started"]:
        return found.get("started") == _started(found.get("process", 0))
    print(
        f"{path} is of {_describe(found)}: waiting up to {STILL_SECONDS:.0f} s to see whether it "
        "still runs",
        file=sys.stderr,
        flush=True,
    )
    deadline = time.monotonic() + STILL_SECONDS
    while time.monotonic() < deadline:
        time.sleep(1)
        now = _read(path)
        if now is None:
            return False
        if now != found:
            return True
    return False


def _read(path: epath.Path) -> dict[str, Any] | None:
    """What the file says; None if there is none, or nobody can be told of by it."""
    try:
        found = json.loads(path.read_text())
    except Exception:  # Buckets' libraries each raise their own kinds.
        return None
    return found if isinstance(found, dict) and "id" in found else None


def _describe(found: Mapping[str, Any]) -> str:
    return f"process {found.get('process')} on {found.get('host')}"
