"""What processes agree on; several of them are told apart by what JAX says of them."""

import jax
import numpy as np
import pytest

from diffusionrl_jax.distributed import processes
from diffusionrl_jax.distributed.mesh import batch_sharding, make_mesh, place
from tests.processes import finish, free_address, launcher

# Each has two devices; the rows of a process are no neighbours, and every send is of 16 bytes.
GATHERING = """
import sys
import jax, numpy as np
from jax.sharding import Mesh
from diffusionrl_jax.distributed import mesh, processes

address, index = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, 2, index)
sent = []
gather = processes.gather
processes.gather = lambda values: sent.append(values.nbytes) or gather(values)
processes.GATHERED_BYTES = 32
devices = np.asarray(jax.devices())[[0, 2, 1, 3]].reshape(2, 2)
rows = np.arange(8 * 3, dtype=np.float32).reshape(8, 3) / 7
placed = mesh.place(rows, mesh.batch_sharding(Mesh(devices, mesh.BATCH_AXES)))
assert not placed.is_fully_addressable
found = processes.gather_rows(placed)
assert found.dtype == np.float32 and found.tobytes() == rows.tobytes()
assert sent == [16, 16, 16, 4 * 4] or sent == [16, 16, 16, 4 * 8], sent
print("WHOLE")
"""


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


def test_rows_on_all_devices_are_brought_to_the_host():
    rows = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    found = processes.gather_rows(place(rows, batch_sharding(make_mesh(2))))
    np.testing.assert_array_equal(found, rows)


@pytest.mark.multiprocess
def test_rows_of_two_processes_are_brought_to_both_a_part_at_a_time():
    address = free_address()
    with launcher({}, devices=2) as run:
        pair = [run("-c", GATHERING, address, str(index)) for index in range(2)]
        for status, output in map(finish, pair):
            assert status == 0 and "WHOLE" in output, output


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
