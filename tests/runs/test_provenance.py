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


def test_another_revision_than_last_time_is_warned_of(tmp_path, caplog):
    folder, then = str(tmp_path), {"me/model": "a" * 40, "hub:me/prompts/file.txt": "b" * 40}
    provenance.warn_of_other_revisions(folder, then)  # Nothing is known.
    provenance.write_run_information(folder, ml_collections.ConfigDict(), then)
    provenance.warn_of_other_revisions(folder, then | {"me/new": "c" * 40})
    assert not caplog.text
    provenance.warn_of_other_revisions(folder, then | {"me/model": "d" * 40})
    (warning,) = caplog.messages
    assert f"me/model is at revision {'d' * 40} here, and was at {'a' * 40}" in warning
    # A run of before has no record.
    (tmp_path / "versions.json").write_text("{}")
    provenance.warn_of_other_revisions(folder, then)
    assert len(caplog.messages) == 1


def test_git_revision_is_gits_own():
    root = pathlib.Path(provenance.__file__).parents[2]
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        assert provenance.git_revision() is None
    else:
        assert provenance.git_revision().removesuffix("+changes") == head.stdout.strip()
