"""The command shows what each slice is asked, and refuses the rest before anything is counted."""

import json

import jax
import jax.numpy as jnp
import pytest

from diffusionrl_jax.costs.needs import Needs, markdown
from tests.own_flags import program

TABLE = "costs.commands.table"
CONFIG = "--config=configs/emoji.py:preference"


def needs(config, model):
    """One parameter of 32 MiB, split over two chips, and 20 TFLOP for eight images."""
    del config
    parameters = (jax.ShapeDtypeStruct((2048, 4096), jnp.float32),)
    return Needs(model, 8, {"sample": 16e12, "update": 4e12}, parameters, 0, fsdp=2)


def test_each_model_on_each_slice(tmp_path, monkeypatch, capsys):
    pytest.importorskip("libtpu")
    slices = ["v5e:2x2", "v6e:2x2"]
    flags = ("--models=sd2,sdxl", f"--topologies={','.join(slices)}", f"--json={tmp_path}/f.json")
    with program(TABLE, CONFIG, *flags) as table:
        monkeypatch.setattr(table, "needs", needs)
        table.main([])
    found = [needs(None, model) for model in ("sd2", "sdxl")]
    assert capsys.readouterr().out == f"{markdown(found, slices)}\n"
    results = json.loads((tmp_path / "f.json").read_text())
    assert [one["model"] for one in results] == ["sd2", "sdxl"]
    of_v5e = results[0]["slices"]["v5e:2x2"]
    assert of_v5e["held"] == 2**24
    assert results[0]["slices"].keys() == set(slices)
    # 197 TFLOP/s, and 20 for an image.
    assert of_v5e["images_per_second_per_chip"] == pytest.approx(197 / 20)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--config is missing"),
        ((CONFIG, "--models=sd3"), "--models='sd3' is not known"),
        ((CONFIG, "--topologies=frob"), "frob"),
        ((CONFIG, "--config.ema_decay=1"), "config.ema_decay=1.0 must be"),
    ],
)
def test_what_is_refused_in_one_line(flags, words, monkeypatch, capsys):
    with program(TABLE, *flags) as table, pytest.raises(SystemExit):
        monkeypatch.setattr(table, "needs", lambda *_: pytest.fail("it is counted"))
        table.main([])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
