import json
import os
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from diffusionrl_jax.runs import lease
from tests.processes import finish, free_address, launcher


def other(workdir, **changes):
    """Another program's file."""
    found = lease._identity() | {"id": "other", "beats": 1} | changes
    (workdir / lease.LEASE).write_text(json.dumps(found))


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(lease, "STILL_SECONDS", 2.5)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)


HOLDER = """
    import sys, time
    from diffusionrl_jax.runs.lease import Lease

    with Lease(sys.argv[1]):
        print("held", flush=True)
        time.sleep(600)
"""


def test_a_living_program_is_named_and_a_killed_one_leaves_no_lock(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"another program trains, process {holder.pid} on"):
            lease.Lease(str(tmp_path)).__enter__()
        holder.kill()
        holder.wait()
    with lease.Lease(str(tmp_path)) as taken:
        taken.check()
    assert list(tmp_path.iterdir()) == []


def test_a_number_of_a_process_that_came_again(tmp_path):
    other(tmp_path, process=os.getpid(), started="1")
    with lease.Lease(str(tmp_path)):
        pass


def test_another_machine_is_watched(tmp_path, short, capsys):
    other(tmp_path, host="elsewhere", process=7)
    with lease.Lease(str(tmp_path)) as first:  # It stands still.
        assert "waiting up to 2 s to see whether it still runs" in capsys.readouterr().err
        content = json.loads((tmp_path / lease.LEASE).read_text())
        # The same seen from elsewhere: it changes.
        pretended = lease._identity() | {"host": "elsewhere"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lease, "_identity", lambda: pretended)
            with pytest.raises(ValueError, match=f"process {content['process']} on"):
                lease.Lease(str(tmp_path)).__enter__()
        first.check()


def test_processes_wait_for_the_first_one_in_short_rounds(tmp_path, short, monkeypatch):
    known = []
    monkeypatch.setattr(lease, "ROUND_SECONDS", 0.5)
    monkeypatch.setattr(lease, "true_everywhere", lambda flag: known.append(flag) or flag)
    other(tmp_path, host="elsewhere", process=7)
    with lease.Lease(str(tmp_path)):
        # Each second until it has stood still for long, then that all see the new file.
        assert known == [False, False, True, True, True]


TWO = """
    import os, sys
    import jax
    from diffusionrl_jax.runs.lease import Lease

    workdir, address, index = sys.argv[1:]
    jax.distributed.initialize(address, 2, int(index))
    with Lease(workdir) as taken:
        taken.check()
        print("held", flush=True)
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_take_over_from_another_machine(tmp_path):
    """The second one waits for longer than gloo does at a time."""
    other(tmp_path, host="elsewhere", process=7)
    address = free_address()
    with launcher({}, devices=1) as run:
        command = "-c", textwrap.dedent(TWO), str(tmp_path), address
        pair = [run(*command, str(index)) for index in range(2)]
        for status, output in map(finish, pair):
            assert status == 0 and "held" in output, output


def test_the_one_that_was_overtaken_is_told(tmp_path, short):
    with lease.Lease(str(tmp_path)) as taken:
        other(tmp_path, host="elsewhere", process=7)
        with pytest.raises(ValueError, match="process 7 on elsewhere"):
            taken.check()
    assert (tmp_path / lease.LEASE).exists(), "it is the other's"


@pytest.mark.parametrize("content", ["", "[]", "{}", "nonsense"])
def test_a_damaged_file_keeps_nobody_out(tmp_path, content):
    (tmp_path / lease.LEASE).write_text(content)
    with lease.Lease(str(tmp_path)):
        pass


@pytest.mark.parametrize("shared", [True, False])
def test_one_folder_for_all_processes(shared, tmp_path, monkeypatch):
    """As the second of two processes sees it, whose first has written to its own folder."""
    first = "0123456789abcdef" * 2
    other(tmp_path, id=first if shared else "f" * 32)

    def gather(values):
        theirs = np.frombuffer(bytes.fromhex(first), np.uint8) if values.ndim else values
        return np.stack([theirs, values])

    monkeypatch.setattr(lease, "STILL_SECONDS", 0.0)
    monkeypatch.setattr(lease, "gather", gather)
    monkeypatch.setattr(lease, "true_everywhere", bool)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    if shared:
        with lease.Lease(str(tmp_path)):
            pass
    else:
        with pytest.raises(ValueError, match="is not one folder for all 2 processes"):
            lease.Lease(str(tmp_path)).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == [lease.LEASE]  # The first one's.
