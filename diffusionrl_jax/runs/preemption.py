"""Turns signals that tell a run to stop into a question that the run asks itself."""

import collections
import contextlib
import os
import signal
from collections.abc import Iterator

from diffusionrl_jax.distributed.processes import true_everywhere


class PreemptionGuard:
    """Turns SIGTERM, SIGINT and SIGHUP into a question that the training loop asks after each step.

        with PreemptionGuard() as guard:
            for step in ...:
                ...
                if guard.should_stop():
                    checkpoints.save(...)
                    break

    A second SIGINT interrupts at once, or where a block of `completing` ends, and a third one there
    too. SIGHUP, which a closed terminal sends, is left alone where
    the program was started to ignore it, as by nohup.
    """

    def __init__(self):
        self._received = collections.Counter()
        self._completing = False
        self._previous = {}

    def __enter__(self) -> "PreemptionGuard":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, _):
        self._received[number] += 1
        name, interrupts = signal.Signals(number).name, self._received[signal.SIGINT]
        if interrupts < 2:
            _say(f"{name}: saving and stopping after this step")
        elif interrupts == 2:
            _say(f"{name}: stopping once what is being saved is complete; once more leaves it")
        if interrupts > 1 + self._completing:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def completing(self) -> Iterator[None]:
        """Lets a second SIGINT interrupt only once the code in this context is through."""
        self._completing = True
        try:
            yield
        finally:
            self._completing = False
        if self._received[signal.SIGINT] > 1:
            raise KeyboardInterrupt

    def should_stop(self) -> bool:
        """Returns whether any process has been told to stop. All processes must call it."""
        return not true_everywhere(not self._received)


def _say(message: str) -> None:
    try:
        os.write(2, f"\n{message}\n".encode())  # print is not safe in a signal handler.
    except OSError:
        _write_to_nowhere()


def _write_to_nowhere() -> None:
    """Redirects output from a terminal that is gone: writing there would end the run unsaved."""
    terminal = os.fstat(2).st_rdev
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if os.fstat(stream).st_rdev == terminal:
            os.dup2(nowhere, stream)
