"""What a run says of itself while it trains."""

import json

import pytest
from absl import logging

from diffusionrl_jax import main


@pytest.mark.slow
def test_small_gradients_are_warned_of_once(make_config, monkeypatch, tmp_path):
    """With an epsilon that is larger than any gradient, in three iterations of two evaluations."""
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    main.train(make_config(**{"optimizer.epsilon": 1.0}), str(tmp_path))
    warned = [text for text in said if "root mean square" in text]
    assert len(warned) == 1 and "below config.optimizer.epsilon=1.0e+00" in warned[0]
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    found = [line["gradient_rms"] for line in lines if "gradient_rms" in line]
    assert len(found) == 3 and 0 < max(found) < 1
