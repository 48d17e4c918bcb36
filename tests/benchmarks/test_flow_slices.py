"""What is gathered in an iteration, by hand."""

import dataclasses

import pytest

from benchmarks import flow_slices
from tests.experiments.test_memory import DIVISION, SIZES

TURNS = flow_slices.Turns(steps=10, updates=5, predictions=1)


def test_by_blocks_every_microbatch_gathers():
    """Six samples of two tasks on a chip, three at a time; 800 and 160 parameters of 2 bytes."""
    blocks = dataclasses.replace(DIVISION, gather="blocks")
    of_update = (1 + 2) * 1600 + 4 * 800
    expected = 4 * (10 * 1600 + 320) + 2 * 5 * 2 * of_update
    assert flow_slices.gathered(SIZES, blocks, TURNS) == expected
    whole = (1 + 1) * 1600 + 320 + 2 * 5 * (1600 + 4 * 800)
    assert flow_slices.gathered(SIZES, DIVISION, TURNS) == whole
    lora = dataclasses.replace(SIZES, lora=True, trained=10, changed=8 * 200)
    updates = 2 * 5 * 2
    saved = expected - flow_slices.gathered(lora, blocks, TURNS)
    assert saved == updates * 4 * (800 - 200)
    one = dataclasses.replace(DIVISION, fsdp=1)
    assert flow_slices.gathered(SIZES, one, TURNS) == 0


def test_the_slower_of_both_counts():
    """At v5e's 197 TFLOP/s and 200 GB/s: 1,152 images, of 10 steps with guidance, 9 trained."""
    config = flow_slices.make_config(
        flow_slices.MEDIUM, {"sampler.text_tokens": 256}, "policy_gradient"
    )
    cells = flow_slices.row("medium", config, "v5e:4x4")
    found = dict(zip(flow_slices.HEAD, cells, strict=True))
    assert found["gather"] == "blocks" and float(found["GiB a chip"]) < 0.94 * 15.75
    # PyTorch counts 2.4426 for one pass.
    computed = 2 * 2.4426 * (10 + 9 * (1 + 2))
    assert float(found["TFLOP an image"]) == pytest.approx(computed, rel=3e-3)
    seconds = max(computed / 197, float(found["GB gathered an image"]) / 200)
    assert float(found["images/s/chip at most"]) == pytest.approx(1 / seconds, rel=0.01)
    assert float(found["chip-seconds"]) == pytest.approx(1152 * seconds, rel=0.01)
