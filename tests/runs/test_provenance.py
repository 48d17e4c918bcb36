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


def test_git_revision_is_gits_own():
    root = pathlib.Path(provenance.__file__).parents[2]
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        assert provenance.git_revision() is None
    else:
        assert provenance.git_revision().removesuffix("+changes") == head.stdout.strip()
