"""Every file of a checkpoint, damaged in seven ways: noticed and survived, or of no account."""

import collections
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from diffusionrl_jax.command_line import programs
from diffusionrl_jax.runs import checkpoints
from tests.processes import shapes_of
from tests.runs.test_checkpoints import assert_identical, make_state


def emptied(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


def garbage(path):
    path.write_bytes(b"\xa5\x5a\x00\xff" * (path.stat().st_size // 4 + 1))


def flipped(path):
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 4
    path.write_bytes(content)


def deleted(path):
    path.unlink()


def folder(path):
    path.unlink()
    path.mkdir()


def state_of(seed):
    """Small arrays, which OCDBT keeps in its index, and a large one, which has a file."""
    large = np.random.default_rng(seed).standard_normal(2**17, np.float32)
    return {"small": make_state(seed), "large": jnp.asarray(large)}


DAMAGES = (emptied, cut, zeroed, garbage, flipped, deleted, folder)


def kind(path):
    """The file's place, without the random names of OCDBT's data."""
    return "/".join([*path.parts[:-1], "*"]) if "d" in path.parts[:-1] else str(path)


@pytest.mark.slow
def test_every_file_in_seven_ways(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", programs.quiet_unraisablehook)
    whole = tmp_path / "whole"
    store = checkpoints.Checkpoints(str(whole))
    for step in (1, 2):
        store.save(step, state_of(step))
    store.close()
    files = [path.relative_to(whole) for path in (whole / "2").rglob("*") if path.is_file()]
    assert len(files) > 8
    table = collections.defaultdict(collections.Counter)
    for file in files:
        for damage in DAMAGES:
            run = tmp_path / "run"
            shutil.copytree(whole, run)
            damage(run / file)
            before = sorted(run.rglob("*"))
            store = checkpoints.Checkpoints(str(run))
            step, state = store.restore(shapes_of(state_of(0)))
            assert_identical(state, state_of(step))
            warnings = capsys.readouterr().err.splitlines()
            assert len(warnings) == (2 - step), (file, damage, warnings)
            assert sorted(run.rglob("*")) == before, "restoring must delete nothing"
            # The run passes through that step again, whatever is in its place.
            if step == 1:
                store.save(2, state_of(22))
                store.wait()
                assert_identical(store.restore_step(2, shapes_of(state_of(0))), state_of(22))
            store.close()
            table[kind(file)][damage.__name__, step] += 1
            shutil.rmtree(run)
    with capsys.disabled():
        print()
        for name in sorted(table):
            noticed = [d.__name__ for d in DAMAGES if table[name][d.__name__, 1]]
            harmless = [d.__name__ for d in DAMAGES if table[name][d.__name__, 2]]
            print(f"{name:44} noticed: {', '.join(noticed) or '-'}; of no account: ", end="")
            print(", ".join(harmless) or "-")
