"""What `benchmarks/rewards.py` measures, in miniature."""

import dataclasses
import json
import subprocess
import sys
import types

import numpy as np
import pytest
import scoring


def test_a_reward_and_its_original_take_turns():
    result = scoring.measure("aesthetic", batch=2, pixels=48, rounds=2, tiny=True)
    assert len(result.ours) == len(result.original) == 2
    assert result.difference < 0.1
    # Two layers, 17 tokens of width 32: four projections and the two halves of an MLP twice as
    # wide; attention, resizing and the head come on top.
    layers = 2 * 2 * 17 * (4 * 32 * 32 + 2 * 32 * 64)
    assert layers < result.operations < 10 * layers


def test_the_share_is_of_operations_by_definition(monkeypatch):
    cost = types.SimpleNamespace(operations=2e6, accessed=4e6)
    monkeypatch.setattr(scoring, "compile_cost", lambda *arguments: cost)
    settings = {"batch": 2, "pixels": 48, "rounds": 0, "tiny": True}
    compiled = scoring.measure("aesthetic", mesh=object(), **settings)
    defined = scoring.measure("aesthetic", **settings)
    assert defined.compiled_operations is defined.accessed is None
    assert (compiled.compiled_operations, compiled.accessed) == (1e6, 2e6)
    assert compiled.operations == defined.operations > 0
    assert scoring.share_rows([compiled], {"x": 1e6}) == scoring.share_rows([defined], {"x": 1e6})


def test_turns_alternate():
    calls = []
    seconds = scoring.take_turns(lambda: calls.append("a"), lambda: calls.append("b"), 3)
    assert "".join(calls) == "baabba"
    assert [len(side) for side in seconds] == [3, 3]


def test_an_iterations_operations_grow_with_its_settings(tiny_networks):
    once = scoring.iteration_operations(tiny_networks, steps=1, timesteps=1)
    more = scoring.iteration_operations(tiny_networks, steps=3, timesteps=2, guided=False)
    assert more["decoding"] == once["decoding"]
    # Without guidance a step takes at least half of what it takes with it.
    assert 1.5 * once["sampling"] <= more["sampling"] <= 3 * once["sampling"]
    assert more["policy gradient"] == pytest.approx(2 * more["pretraining"])
    # A gradient is about three evaluations.
    assert 2 < more["pretraining"] / (more["sampling"] / 3) < 4


def test_tables_hold_medians_and_shares():
    result = scoring.Scoring("x", (2.0, 4.0, 4.0), (4.0, 4.0, 2.0), 0.0, 1e12)
    assert scoring.row(result) == "| x | 4 | 4 | 1.00 (0.50 to 2.00) | 1,000 | - |"
    compiled = dataclasses.replace(result, compiled_operations=2e12, accessed=5e6)
    assert scoring.row(compiled) == "| x | 4 | 4 | 1.00 (0.50 to 2.00) | 2,000 | 5 |"
    rows = scoring.share_rows([compiled], {"sampling": 2e12, "decoding": 1e12})
    assert rows[0] == "| sampling | 2 | |"
    assert rows[-1] == "| x | 1 | 25.00% |"


@pytest.mark.slow  # Imports both frameworks in a process of its own.
def test_the_program_writes_what_it_measured(tmp_path):
    command = [sys.executable, "benchmarks/rewards.py"]
    options = ["--batch=2", "--pixels=32", "--rounds=1", "--tiny", "--topology="]
    file = tmp_path / "rewards.json"
    output = subprocess.run(
        [*command, *options, "--rewards=jpeg_size,owl_vit", f"--json={file}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    report = json.loads(file.read_text())
    assert [reward["name"] for reward in report["rewards"]] == ["jpeg_size", "owl_vit"]
    assert report["rewards"][0]["difference"] == 0
    assert all(np.isfinite(reward["ours"]).all() for reward in report["rewards"])
    assert output.count("\n| ") == 3
    wrong = subprocess.run([*command, "--rewards=clip"], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert wrong.stderr.strip().splitlines()[-1].startswith("error: --rewards has ['clip']")


def test_without_pytorch_the_program_says_what_to_install():
    program = (
        "import sys; sys.modules['torch'] = None; sys.path.insert(0, 'benchmarks');"
        "import rewards; rewards.programs.run(rewards.main)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 1
    assert "error: The originals need PyTorch: pip install torch" in result.stderr
