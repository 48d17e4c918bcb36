import os
import signal

import pytest

from diffusionrl_jax.runs import preemption


def test_preemption_guard_asks_instead_of_killing():
    before = signal.getsignal(signal.SIGTERM)
    with preemption.PreemptionGuard() as guard:
        assert not guard.should_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert guard.should_stop()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_interrupt_waits_for_what_is_being_completed():
    interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)
    done = []
    with preemption.PreemptionGuard() as guard:
        with guard.completing():
            interrupt()
        with pytest.raises(KeyboardInterrupt), guard.completing():
            interrupt()
            done.append("saved")
        assert done == ["saved"]
        with pytest.raises(KeyboardInterrupt), guard.completing():
            interrupt()
            pytest.fail("A third one does not wait.")


def test_a_closed_terminal_stops_a_run_unless_it_was_to_be_ignored():
    for handler, told in ((signal.SIG_DFL, True), (signal.SIG_IGN, False)):
        before = signal.signal(signal.SIGHUP, handler)
        try:
            with preemption.PreemptionGuard() as guard:
                os.kill(os.getpid(), signal.SIGHUP)
                assert guard.should_stop() == told
            assert signal.getsignal(signal.SIGHUP) == handler
        finally:
            signal.signal(signal.SIGHUP, before)
