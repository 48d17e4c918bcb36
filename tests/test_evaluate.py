"""The program that compares checkpoints."""

import pytest
from PIL import Image

from tests.processes import (
    finish,
)


@pytest.mark.slow
def test_evaluate_compares_checkpoints(start, finished, config_file, make_config, tmp_path):
    config = config_file(make_config())
    checkpoints = f"last={finished},second={finished}@2"
    status, output = finish(
        start(
            "evaluate",
            f"--config={config}",
            f"--checkpoints={checkpoints}",
            f"--output={tmp_path}",
            "--images=4",
        )
    )
    assert status == 0, output
    assert (tmp_path / "results.md").read_text() in output
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines[0] == "model,set,measure,scorer,value,low,high,images"
    assert {line.split(",")[0] for line in lines[1:]} == {
        "base",
        "last",
        "second",
        "real pictures",
    }
    assert Image.open(tmp_path / "comparison.png").height > 3 * 96
