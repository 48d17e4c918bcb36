"""The program that compares checkpoints."""

import pytest
from PIL import Image

from tests.processes import finish


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


@pytest.mark.slow
def test_evaluate_repeats_a_manifest(start, finished, config_file, make_config, tmp_path):
    config = config_file(make_config())
    first = (f"--config={config}", f"--checkpoints=run={finished}@best", "--images=4")
    status, output = finish(start("evaluate", *first, f"--output={tmp_path}/one"))
    assert status == 0, output
    again = f"--manifest={tmp_path}/one/manifest.json"
    status, output = finish(start("evaluate", again, f"--output={tmp_path}/two"))
    assert status == 0, output
    one, two = (tmp_path / name / "results.csv" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    other = (*first, "--config.sampler.steps=2", again, f"--output={tmp_path}/three")
    status, output = finish(start("evaluate", *other))
    assert status == 1
    assert "sampling.sampler.steps (was 3, now 2)" in output
    assert len(output.strip().splitlines()) == 1
    status, output = finish(start("evaluate", again, "--images=4", f"--output={tmp_path}/three"))
    assert status == 1 and "go with a --config" in output
