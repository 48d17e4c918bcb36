"""The command tells what was measured, and refuses the rest before anything is computed."""

import json

import jax
import pytest

from tests.costs.test_throughput import result_of
from tests.own_flags import program

TRAIN = "costs.commands.train"
CONFIG = "--config=configs/emoji.py:preference"
RESULT = result_of()


@pytest.fixture
def run(monkeypatch):
    """A function of flags and processes: what was asked to be measured."""

    def of(*flags, processes=1, process=0):
        asked = []
        with program(TRAIN, *flags) as command:
            monkeypatch.setattr(command.start, "start_devices", lambda: None)
            monkeypatch.setattr(command.start, "use_compilation_cache", lambda: None)
            monkeypatch.setattr(command, "measure", lambda *given: asked.append(given) or RESULT)
            monkeypatch.setattr(jax, "process_count", lambda: processes)
            monkeypatch.setattr(jax, "process_index", lambda: process)
            command.main([])
        return asked

    return of


def test_what_is_measured_is_told_by_the_first_process(run, tmp_path, capsys):
    flags = (CONFIG, "--steps=3", f"--cache_dir={tmp_path}/cache", f"--json={tmp_path}/found.json")
    ((config, cache, steps, profile),) = run(*flags, processes=2, process=1)
    assert (cache, steps, profile) == (f"{tmp_path}/cache", 3, None)
    assert config.model == "asset:emoji/stable_diffusion"
    assert not capsys.readouterr().out and not (tmp_path / "found.json").exists()
    run(*flags)
    assert capsys.readouterr().out == f"{RESULT.markdown()}\n"
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["seconds"] == {"iteration": 2.0}
    # Eight images in two seconds, by two chips.
    assert found["rates"]["iteration"]["images_per_second_per_chip"] == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--config is missing"),
        ((CONFIG, "--steps=0"), "--steps=0 must be"),
        ((CONFIG, "--config.seed=-1"), "config.seed=-1 must be"),
        ((CONFIG,), "With several processes give a --cache_dir"),
    ],
)
def test_what_is_refused_in_one_line(run, flags, words, capsys):
    with pytest.raises(SystemExit):
        run(*flags, processes=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
