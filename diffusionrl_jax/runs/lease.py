"""Keeps two programs from training in one workdir, on shared disks and in buckets too.

The program that trains there writes a small file into the workdir again and again. Another program
that finds the file checks whether its writer is alive: on the same machine by the writer's process,
on another machine by whether the file still changes. A killed run thus leaves nothing behind that
somebody would have to remove, and the machines' clocks need not agree.
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
# For how long another machine's file must not change until its writer counts as gone: some beats,
# and the delay of a shared disk.
STILL_SECONDS = 35.0
# How long processes wait for one of them at a time. On CPUs, where gloo takes the interconnect's
# place, they give up after half a minute.
ROUND_SECONDS = 5.0


class Lease:
    """The lease of a workdir.

    Where there are several processes, all call it, and the first one holds it.

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
          UserError: another program trains in the workdir, or not all processes see the same
            folder. It is raised in all processes alike.
        """
        found = _read(self._path) if jax.process_index() == 0 else None
        may_live = lambda: found is not None and _may_live(found, self._path)
        if found is not None and may_live() is None:
            print(
                f"{self._path} is of {_describe(found)}: waiting up to {STILL_SECONDS:.0f} s to "
                "see whether it still runs",
                file=sys.stderr,
                flush=True,
            )
        self._refuse(found if _wait_for(may_live) else None)
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
            # If that fails, others still see that this process is gone.
            with contextlib.suppress(Exception):
                if self._other() is None:
                    self._path.unlink()

    def check(self) -> None:
        """Makes sure that the lease is still this program's.

        If two programs took it together, or this one stood still for long, it may be another's.

        Raises:
          UserError: another program holds the lease. It is raised in all processes alike.
        """
        self._refuse(self._other() if jax.process_index() == 0 else None)

    def _is_seen(self) -> bool:
        """Returns whether this process sees what the first one wrote; a disk may show it late."""
        first = gather(np.frombuffer(bytes.fromhex(self._own["id"]), np.uint8))[0]

        def is_there() -> bool | None:
            if jax.process_index() == 0:
                return True
            found = _read(self._path)
            return found is not None and found["id"] == first.tobytes().hex() or None

        return _wait_for(is_there)

    def _refuse(self, holder: Mapping[str, Any] | None) -> None:
        """Raises a UserError in all processes if the first one has found a holder."""
        if gather(np.array(holder is not None)).any():
            whose = "another program's, as process 0 says" if holder is None else _describe(holder)
            raise UserError(
                f"In {self._workdir} another program trains, {whose}: wait for it, stop it, or "
                "choose another --workdir."
            )

    def _other(self) -> dict[str, Any] | None:
        """Returns what another program wrote over this one's file, or None."""
        found = _read(self._path)
        return None if found is None or found["id"] == self._own["id"] else found

    def _write(self) -> None:
        self._beats += 1
        write_whole(self._path, json.dumps(self._own | {"beats": self._beats}).encode())

    def _beat(self) -> None:
        """Writes the file again and again until the lease is given back."""
        while not self._stop.wait(BEAT_SECONDS):
            # If the disk is full or the bucket out of reach, training's own writes will report it.
            with contextlib.suppress(Exception):
                if self._other() is None:
                    self._write()


def _identity() -> dict[str, Any]:
    """Returns what identifies this process, and the machine on which its number is valid."""
    return {
        "host": socket.gethostname(),
        "boot": _first(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text),
        "namespace": _first(lambda: os.readlink("/proc/self/ns/pid")),
        "process": os.getpid(),
        "started": _started(os.getpid()),
    }


def _first(read: Callable[[], str]) -> str:
    """Returns what is read, or an empty text on a system without /proc."""
    try:
        return read().strip()
    except OSError:
        return ""


def _started(process: int) -> str:
    """Returns when a process started, in clock ticks, or an empty text if it is gone.

    It tells a process from a later one with the same number.
    """
    stat = _first(pathlib.Path(f"/proc/{process}/stat").read_text)
    fields = stat.rpartition(")")[2].split()  # The name before them may have spaces.
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


def _wait_for(answer: Callable[[], bool | None]) -> bool:
    """Returns a function's answer, once every process has one. All call it.

    Args:
      answer: returns None while it does not know. If that lasts for `STILL_SECONDS`, it is False.
    """
    found, deadline = answer(), time.monotonic() + STILL_SECONDS
    while True:
        end = min(deadline, time.monotonic() + ROUND_SECONDS)
        while found is None and time.monotonic() < end:
            time.sleep(1)
            found = answer()
        if found is None and time.monotonic() >= deadline:
            found = False
        if true_everywhere(found is not None):
            return bool(found)


def _may_live(found: dict[str, Any], path: epath.Path) -> bool | None:
    """Returns whether the file's writer may be alive.

    It is None for that of another machine while its file has not changed.
    """
    own = _identity()
    here = all(found.get(name) == own[name] for name in ("host", "boot", "namespace"))
    if here and own["started"]:
        return found.get("started") == _started(found.get("process", 0))
    now = _read(path)
    if now is None:
        return False
    return now != found or None


def _read(path: epath.Path) -> dict[str, Any] | None:
    """Returns what the file says; None if there is none, or it does not tell whose it is."""
    try:
        found = json.loads(path.read_text())
    except Exception:  # Buckets' libraries each raise their own kinds.
        return None
    return found if isinstance(found, dict) and "id" in found else None


def _describe(found: Mapping[str, Any]) -> str:
    return f"process {found.get('process')} on {found.get('host')}"
