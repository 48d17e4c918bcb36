"""Shows how far a run is, and measures where its time goes."""

import collections
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import tqdm


class Progress:
    """A progress bar with each task's reward, images per second and the time left.

    Args:
      total_steps: how many steps the whole run has.
      start_step: how many of them are done already.
    """

    def __init__(self, total_steps: int, start_step: int = 0):
        # In a log file each refresh is a line of its own, so refreshes are rare there.
        self._bar = tqdm.tqdm(
            total=total_steps,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            disable=jax.process_index() != 0,
        )

    def update(self, rewards: Mapping[str, float], images_per_second: float) -> None:
        """Counts one step, and shows each task's mean reward and the images per second."""
        parts = [f"{task} {float(reward):.3f}" for task, reward in rewards.items()]
        parts.append(f"{images_per_second:.1f} images/s")
        with contextlib.suppress(OSError):  # Nobody may read a pipe any longer.
            self._bar.set_postfix_str(", ".join(parts), refresh=False)
            self._bar.update()

    def close(self) -> None:
        """Leaves the bar as it last was."""
        with contextlib.suppress(OSError):
            self._bar.refresh()
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_):
        self.close()


class PhaseTimer:
    """Adds up the seconds of a step's phases.

    JAX returns before the work is done. A phase must therefore end with `jax.block_until_ready`, or
    its time is counted in the phase that waits for it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._seconds = collections.defaultdict(float)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time spent inside, also when it ends in an error."""
        start = self._clock()
        try:
            yield
        finally:
            self._seconds[name] += self._clock() - start

    def collect(self) -> dict[str, float]:
        """Returns {"seconds/<phase>": seconds} since the last call, and starts anew."""
        seconds = {f"seconds/{name}": value for name, value in self._seconds.items()}
        self._seconds.clear()
        return seconds
