"""The shipped config's own line, against a hub on loopback, from an empty cache."""

import os
import shlex
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline

from diffusionrl_jax.monitoring.metrics import read_rows
from tests import hub as stand_in
from tests import own_flags
from tests.processes import ROOT, finish, launcher, steps_of, wait_for_step

# With what makes it a matter of seconds: few images, short chains.
FIELDS = "algorithm.policy_gradient"
LINE = (
    *("-m", "diffusionrl_jax.main", "--config=configs/hps.py"),
    *(
        "--config.batch_size=8",
        "--config.sampler.steps=2",
        f"--config.{FIELDS}.timesteps_per_iteration=1",
    ),
    *("--config.pretraining.pictures=base:8", "--config.checkpoint.every=1"),
    *("--config.evaluation.sets.hps.images=8",),
)


@pytest.fixture(scope="module")
def hub(tiny_model, tmp_path_factory):
    published = stand_in.make_repositories(tmp_path_factory.mktemp("published"), tiny_model)
    with stand_in.serve(published) as server:
        yield server


def start_with(hub, folder, compilation_cache, devices, place=ROOT, **more):
    environment = stand_in.environment(hub, folder) | compilation_cache | more
    return launcher(environment, devices, place)


def errors_of(output):
    assert "Traceback" not in output
    return [line for line in output.splitlines() if line.startswith("error: ")]


def test_no_accelerator_is_taken(monkeypatch, capsys):
    """A run that is under way keeps it."""
    done = []
    with own_flags.program("fetch", "--config=configs/emoji.py") as fetch:
        monkeypatch.setattr(fetch.jax.config, "update", lambda *change: done.append(change))
        bring = lambda config, only_hub: done.append("bring") or []
        monkeypatch.setattr(fetch.fetching, "bring", bring)
        fetch.main([])
    assert done == [("jax_platforms", "cpu"), "bring"]
    assert "names nothing on the Hugging Face hub" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_the_line_from_nothing_to_pytorch(hub, compilation_cache, tmp_path, devices):
    workdir, output = tmp_path / "run", tmp_path / "exported"
    line = (*LINE, f"--workdir={workdir}")
    with start_with(hub, tmp_path, compilation_cache, devices) as start:
        process = start(*line)
        wait_for_step(process, workdir, 3)  # The first checkpoint is whole when the second begins.
        process.kill()
        finish(process)
        hub.requests.clear()
        last = steps_of(workdir)[-1] + 1
        status, text = finish(start(*line, f"--config.iterations={last}"))
        assert status == 0, text
        assert steps_of(workdir) == list(range(last + 1))
        assert "Resumed after iteration" in text
        assert all("hps/reward_mean" in row for row in read_rows(str(workdir))[1:])
        assert not hub.requests, "what was fetched once is not asked for again"
        export = "diffusionrl_jax.export", f"--checkpoint={workdir}@best", f"--output={output}"
        status, text = finish(start("-m", *export))
        assert status == 0, text
    pipeline = StableDiffusionPipeline.from_pretrained(output, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    (image,) = pipeline("a cat", num_inference_steps=2, output_type="np").images
    assert image.shape == (32, 32, 3)


@pytest.mark.slow
def test_the_line_with_nothing_changed_but_its_numbers(hub, compilation_cache, tmp_path):
    """With all 50 steps and the workdir of its name, but a part of the 8,192 pictures.

    All of these were not drawn in nine minutes of a core.
    """
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    numbers = "--config.iterations=2", "--config.batch_size=16"
    line = *LINE[:3], *numbers, "--config.pretraining.pictures=base:128"
    with start_with(hub, tmp_path, compilation_cache, 1, tmp_path) as start:
        status, text = finish(start(*line))
        assert status == 0, text
        assert f"Workdir: {tmp_path}/runs/hps" in text.splitlines()[0]
        assert "128 of the model's own" in text
        assert steps_of(tmp_path / "runs" / "hps")[-1] == 2
        rows = read_rows(str(tmp_path / "runs" / "hps"))
        assert [row["step"] for row in rows] == [0, 1, 2]
        status, text = finish(start(*line))
        assert status == 0 and "nothing is left to do" in text


@pytest.mark.slow
def test_fetched_where_there_is_a_network_and_trained_where_there_is_none(
    hub, compilation_cache, tmp_path
):
    output, workdir = tmp_path / "fetched", tmp_path / "run"
    line = (*LINE, f"--workdir={workdir}", "--config.iterations=1")
    offline = {"HF_HUB_OFFLINE": "1"}
    with start_with(hub, tmp_path, compilation_cache, 1, **offline) as start:
        status, text = finish(start(*line))
        assert status == 1
        (error,) = errors_of(text)
        for name in (stand_in.STABLE_DIFFUSION, stand_in.HPS, stand_in.CLIP, "metadata.parquet"):
            assert name in error
    with start_with(hub, tmp_path, compilation_cache, 1) as start:
        program = "diffusionrl_jax.fetch", "--config=configs/hps.py", f"--output={output}"
        status, text = finish(start("-m", *program))
    assert status == 0, text
    assert f"{stand_in.HPS} at revision {hub.revision(stand_in.HPS)[:12]}, " in text
    overrides = text.split("add these to the command:")[1].replace("\\\n", " ")
    shutil.rmtree(tmp_path / "home")
    with start_with(hub, tmp_path, compilation_cache, 1, **offline) as start:
        status, text = finish(start(*line, *shlex.split(overrides)))
        assert status == 0, text
    assert steps_of(workdir) == [0, 1]
    assert not os.path.exists(tmp_path / "home" / "hub")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_processes_that_share_a_cache_take_turns(hub, compilation_cache, tmp_path):
    """Four at once, from an empty cache."""
    hub.requests.clear()
    program = "-m", "diffusionrl_jax.fetch", "--config=configs/hps.py"
    with start_with(hub, tmp_path, compilation_cache, 1) as start:
        processes = [start(*program) for _ in range(4)]
        for status, text in map(finish, processes):
            assert status == 0, text
    fetched = [path for kind, path, _ in hub.requests if kind == "GET" and "/cdn/" in path]
    assert len(fetched) == len(set(fetched)), "each file once"
    converted = tmp_path / "home" / "diffusionrl_jax" / "converted"
    assert [path.name for path in converted.iterdir() if path.is_dir()] == ["hps_v2--xswu--HPSv2"]
