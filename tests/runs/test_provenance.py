import json
import pathlib
import subprocess

import jax
import ml_collections

from diffusionrl_jax.runs import provenance


def test_run_information(tmp_path):
    config = ml_collections.ConfigDict({"seed": 3, "shape": (1, 2), "nested": {"path": "x"}})
    provenance.write_run_information(str(tmp_path), config)
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "seed": 3,
        "shape": [1, 2],
        "nested": {"path": "x"},
    }
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert versions["packages"]["jax"] == jax.__version__
    assert versions["devices"] == jax.device_count()
    assert versions["git_revision"] == provenance.git_revision()


def test_what_pip_leaves_behind_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "left-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    provenance.write_run_information(str(tmp_path), ml_collections.ConfigDict())
    assert "jax" in json.loads((tmp_path / "versions.json").read_text())["packages"]


def test_another_revision_than_the_first_is_warned_of_at_every_start(tmp_path, caplog):
    folder, then = str(tmp_path), {"me/model": "a" * 40, "hub:me/prompts/file.txt": "b" * 40}

    def start(revisions):
        first = provenance.first_revisions(folder, revisions)
        provenance.write_run_information(folder, ml_collections.ConfigDict(), first)
        return json.loads((tmp_path / "versions.json").read_text())["fetched"]

    assert start(then) == then  # Nothing is known.
    assert start(then | {"me/new": "c" * 40}) == then | {"me/new": "c" * 40}
    assert not caplog.text
    for _ in range(2):
        assert start({"me/model": "d" * 40}) == then | {"me/new": "c" * 40}
        (warning,) = caplog.messages
        assert f"me/model is at revision {'d' * 40} here, and was at {'a' * 40} when" in warning
        caplog.clear()
    # A run of before has no record.
    (tmp_path / "versions.json").write_text("{}")
    assert start(then) == then
    assert not caplog.text


def test_git_revision_is_gits_own():
    root = pathlib.Path(provenance.__file__).parents[2]
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        assert provenance.git_revision() is None
    else:
        assert provenance.git_revision().removesuffix("+changes") == head.stdout.strip()
