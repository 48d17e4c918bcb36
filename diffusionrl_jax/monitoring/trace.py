"""Writes a profiler's trace of the iterations that are asked for."""

import contextlib
from collections.abc import Iterator

import jax
from absl import logging
from etils import epath


class Trace:
    """The trace of some iterations, of which a run may make all, a part or none.

    It begins with the first of them that is made, and is complete after the last, or where the
    iterations end before.

    Args:
      workdir: the folder whose folder "profile" the trace is written into.
      iterations: the iterations that are traced.
    """

    def __init__(self, workdir: str, iterations: range):
        self._folder = epath.Path(workdir) / "profile"
        self._iterations = iterations
        self._made: list[int] = []  # Those in the trace that is being written.

    @contextlib.contextmanager
    def iteration(self, number: int) -> Iterator[None]:
        """Wraps an iteration: names it for a profiler, and traces it if it is one of those."""
        if number in self._iterations:
            if not self._made:
                jax.profiler.start_trace(str(self._folder))
            self._made.append(number)
        with jax.profiler.StepTraceAnnotation("iteration", step_num=number):
            yield
        if self._made and number == self._iterations[-1]:
            self.close()

    def close(self) -> None:
        """Completes the trace if one is being written."""
        if not self._made:
            return
        made, self._made = self._made, []
        jax.profiler.stop_trace()
        logging.info("Iterations %d to %d are in %s.", made[0], made[-1], self._folder)
