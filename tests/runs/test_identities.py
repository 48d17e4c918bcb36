"""Models are known by their files, as sha256sum has them, and by their checkpoints' arrays."""

import contextlib
import hashlib
import json
import shutil

import jax.numpy as jnp
import pytest

from configs import common
from diffusionrl_jax.data.hub_files import Held
from diffusionrl_jax.runs import identities, trained
from diffusionrl_jax.runs.identities import identify_model, settle_step


def digest(content):
    return hashlib.sha256(content).hexdigest()


def listed(**contents):
    """The digest of what sha256sum prints of files with these contents."""
    lines = (f"{digest(contents[name])}  {name}\n" for name in sorted(contents))
    return digest("".join(lines).encode())


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index").write_bytes(b"{}")
    return folder


def test_a_folder_is_known_by_its_files(model, tmp_path):
    found = identify_model(str(model), "")
    assert found == {"path": str(model), "files": listed(model_index=b"{}")}
    lora = tmp_path / "lora.safetensors"
    lora.write_bytes(b"factors")
    of_lora = {"path": str(lora), "files": digest(b"factors")}
    assert identify_model(str(model), "", str(lora)) == found | {"lora": of_lora}
    (model / "model_index").write_bytes(b"{ }")
    assert identify_model(str(model), "")["files"] == listed(model_index=b"{ }")


def test_of_the_hub_files_count_that_are_read(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode())
    held = Held("some/model", "0" * 40, tmp_path, ("a", "c"))
    monkeypatch.setattr(identities.hub_files, "fetch", lambda needs: [held for _ in needs])
    files = listed(a=b"a", c=b"c")
    assert identities.held_digest(held) == files
    assert identify_model("some/model", "") == {"path": "some/model", "files": files}


@pytest.fixture
def run(model, tmp_path):
    """A workdir with checkpoints of the steps 1, 2 and 3, of which the last two hold the same."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    config = common.get_config()
    config.model, config.lora.rank, config.checkpoint.keep_last = str(model), 2, 3
    config.tasks.small = common.make_task(common.make_scorer("jpeg_size"), "emoji:pairs")
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    with contextlib.closing(trained.open_checkpoints(str(workdir), config)) as checkpoints:
        for step, score in enumerate((0.2, 0.9, 0.5), start=1):
            checkpoints.save(step, {"x": jnp.full(3, min(step, 2))}, {"best": score})
    return workdir


def test_a_run_is_known_by_its_checkpoints_arrays(run, model):
    first, second, third = (identify_model(str(run), step) for step in "123")
    assert first["arrays"] != second["arrays"] == third["arrays"]
    assert (third["path"], third["step"], third["lora"]["rank"]) == (str(run), "3", 2)
    assert third["started_from"] == identify_model(str(model), "")
    # Checkpoints of early versions have no record of their arrays, but files.
    for step in "23":
        shutil.rmtree(run / "checkpoints" / step / "record")
    second, third = (identify_model(str(run), step) for step in "23")
    assert len({first["arrays"], second["arrays"], third["arrays"]}) == 3


def test_the_step_that_is_meant_now_is_a_number(run, model):
    steps = {"": "3", "last": "3", "best": "2", "1": "1", "01": "1"}
    assert {step: settle_step(str(run), step) for step in steps} == steps
    assert settle_step(str(model), "") == ""
    with pytest.raises(ValueError, match="is not the workdir of a run .* no step 'best'"):
        settle_step(str(model), "best")


@pytest.mark.slow
def test_checkpoints_by_their_arrays(finished):
    assert settle_step(str(finished), "last") == settle_step(str(finished), "") == "3"
    found = [identify_model(str(finished), step) for step in ("2", "3")]
    assert found[0]["arrays"] != found[1]["arrays"]
    assert found[0]["started_from"] == found[1]["started_from"]
