"""The originals that `benchmarks/` holds the rewards against, here at tiny sizes."""

from pathlib import Path

import pytest


@pytest.fixture
def parity(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import reward_parity

    return reward_parity


@pytest.fixture
def make_original(parity, tmp_path):
    """A function that makes a tiny original and its folder."""
    originals = parity.originals

    def make(reward):
        original = originals.make(reward, tmp_path, originals.tiny(originals.PUBLISHED[reward]))
        original.write(tmp_path)
        return original, tmp_path

    return make
