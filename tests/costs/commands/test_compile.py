"""The command compiles what its flags say, tells what was found, and refuses the rest at once."""

import json

import pytest

from diffusionrl_jax.models.folders.published import HUB_IDS
from tests.costs.test_report import COST, result_of
from tests.own_flags import program

COMPILE = "costs.commands.compile"
CONFIG = "--config=configs/emoji.py:preference"


def test_what_is_compiled_is_told(tmp_path, monkeypatch, capsys):
    asked, result = [], result_of(COST)
    flags = ("--topology=v5e:2x2", "--model=sdxl", "--phases=sample,update", "--noneeded")
    files = (f"--json={tmp_path}/found.json", f"--programs={tmp_path}/programs")
    with program(COMPILE, CONFIG, *flags, *files, "--config.batch_size=16") as command:
        monkeypatch.setattr(
            command.dry_run,
            "dry_run",
            lambda *given, **more: asked.append((*given, more)) or result,
        )
        command.main([])
    ((config, topology, options),) = asked
    assert (config.model, config.batch_size, topology) == (HUB_IDS["sdxl"], 16, "v5e:2x2")
    assert options == {
        "whole": False,
        "only": ["sample", "update"],
        "needed": False,
        "save": str(tmp_path / "programs"),
        "quick": False,
    }
    assert capsys.readouterr().out == f"{result.markdown()}\n"
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == json.loads(json.dumps(result.to_json(), default=str))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((CONFIG,), "--config and --topology must both be given"),
        (("--topology=v5e:2x2",), "--config and --topology must both be given"),
        ((CONFIG, "--topology=v5e:2x2", "--config.ema_decay=1"), "config.ema_decay=1.0 must be"),
        ((CONFIG, "--topology=v5e:2x2", "--json=/no/x.json"), "There is no folder /no"),
    ],
)
def test_what_is_refused_before_anything_is_compiled(flags, words, monkeypatch, capsys):
    with program(COMPILE, *flags) as command, pytest.raises(SystemExit):
        monkeypatch.setattr(command.dry_run, "dry_run", lambda *_, **__: pytest.fail("compiled"))
        command.main([])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
