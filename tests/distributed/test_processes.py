"""What processes agree on; several of them are told apart by what JAX says of them."""

import jax
import numpy as np
import pytest

from diffusionrl_jax.distributed import processes


def test_one_process_agrees_with_itself():
    np.testing.assert_array_equal(processes.gather(np.arange(3)), [[0, 1, 2]])
    assert processes.true_everywhere(True) and not processes.true_everywhere(False)
    assert processes.in_turn(lambda: "result") == "result"


def test_several_processes_gather_what_all_of_them_have(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    others = lambda values: np.stack([values, np.zeros_like(values)])
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", others)
    np.testing.assert_array_equal(processes.gather(np.arange(3)), [[0, 1, 2], [0, 0, 0]])
    assert not processes.true_everywhere(True)


@pytest.mark.parametrize(("index", "order"), [(0, ["call", "meet"]), (2, ["meet", "call"])])
def test_the_first_process_calls_before_the_others(index, order, monkeypatch):
    found = []
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(processes, "true_everywhere", lambda flag: found.append("meet"))
    assert processes.in_turn(lambda: found.append("call") or 7) == 7
    assert found == order


def test_a_process_alone_ends_with_a_line_and_the_usual_clean_up(capsys):
    with pytest.raises(SystemExit) as caught:
        processes.fail("error: this", status=3)
    assert caught.value.code == 3
    assert capsys.readouterr().err == "error: this\n"
