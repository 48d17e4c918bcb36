"""Traces of the profiler's own, of iterations that are made, skipped or not reached."""

import contextlib
import glob

import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from diffusionrl_jax.monitoring.trace import Trace


def iterations_in(folder):
    """The numbers of the iterations in the folder's traces, as the profiler reads them."""
    numbers = []
    for path in glob.glob(f"{folder}/profile/**/*.xplane.pb", recursive=True):
        for plane in ProfileData.from_file(path).planes:
            events = [event for line in plane.lines for event in line.events]
            steps = [dict(event.stats) for event in events if event.name == "iteration"]
            numbers += [int(stats["step_num"]) for stats in steps]
    return sorted(numbers)


def make(folder, wanted, made):
    with contextlib.closing(Trace(str(folder), wanted)) as trace:
        for number in made:
            with trace.iteration(number):
                jnp.ones(3).sum().block_until_ready()


@pytest.mark.parametrize(
    "made, expected",
    [
        (range(1, 6), [2, 3]),
        (range(3, 6), [3]),  # A run that is resumed after the first of them.
        (range(4, 6), []),  # One that is resumed after the last.
        (range(1, 3), [2]),  # One that is told to stop before.
    ],
)
def test_what_is_made_of_the_wanted_iterations_is_traced(made, expected, tmp_path):
    make(tmp_path, range(2, 4), made)
    assert iterations_in(tmp_path) == expected
    assert (tmp_path / "profile").exists() == bool(expected)


def test_an_iteration_that_fails_leaves_no_trace_running(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with contextlib.closing(Trace(str(tmp_path), range(2, 4))) as trace:
            with trace.iteration(2):
                raise ZeroDivisionError
    make(tmp_path / "next", range(1, 2), range(1, 2))  # The profiler makes one at a time.
    assert iterations_in(tmp_path / "next") == [1]


def test_nothing_is_traced_unless_it_is_asked_for(tmp_path):
    make(tmp_path, range(0), range(1, 3))
    assert not list(tmp_path.iterdir())
