"""Calls in threads that can be given up."""

import sys
import threading

import pytest

from diffusionrl_jax.rewards.background import in_background


def test_a_call_gives_its_result_or_its_error():
    assert in_background(divmod, 7, 2).result(20) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        in_background(divmod, 7, 0).result(20)
    with pytest.raises(SystemExit):
        in_background(sys.exit, 3).result(20)


def test_a_call_that_hangs_does_not_keep_the_program_from_ending():
    over, threads = threading.Event(), []

    def wait():
        threads.append(threading.current_thread())
        return over.wait(20)

    future = in_background(wait)
    with pytest.raises(TimeoutError):
        future.result(0.05)
    over.set()
    assert future.result(20) is True
    assert threads[0].daemon and threads[0] is not threading.main_thread()
