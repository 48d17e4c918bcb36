"""How a checkpoint is named."""

import contextlib
import dataclasses

import numpy as np
import pytest

from diffusionrl_jax.evaluation.compare import parse_checkpoint
from diffusionrl_jax.experiments.loading import load_policy
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.runs import export, trained
from diffusionrl_jax.runs.provenance import write_run_information


@pytest.mark.parametrize("name", ["a@best", "a@12", "a@b"])
def test_a_folder_that_is_there_wins(name, tmp_path):
    path, _, step = name.partition("@")
    assert trained.split_step(f"{tmp_path}/{name}") == (f"{tmp_path}/{path}", step)
    (tmp_path / name).mkdir()
    assert trained.split_step(f"{tmp_path}/{name}") == (f"{tmp_path}/{name}", "")
    assert trained.split_step(f"{tmp_path}/{name}@last") == (f"{tmp_path}/{name}", "last")


@pytest.mark.parametrize("step", ["", "last", "best", "12"])
def test_a_step_means_the_same_wherever_a_checkpoint_is_named(step, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    after = f"@{step}" if step else ""
    assert trained.parse_model(f"runs/hps/{after}", "--model")[1] == step
    (tmp_path / "runs" / "hps").mkdir(parents=True)
    expected = (f"{tmp_path}/runs/hps", step)
    assert trained.parse_model(f"runs/hps{after}", "--model") == expected
    assert parse_checkpoint(f"mine=runs/hps{after}") == ("mine", *expected)


@pytest.mark.parametrize("step", ["", "bset", "-1", "1.5", "best "])
def test_steps_that_cannot_be(step):
    for parse in (
        lambda text: trained.parse_model(text, "--model"),
        lambda text: parse_checkpoint(f"a={text}"),
        lambda text: export.export_pipeline(text, None, "float32"),
        lambda text: export.export_lora(text, None, "float32"),
    ):
        with pytest.raises(ValueError, match=f"the step '{step}' is not a number"):
            parse(f"/runs/a@{step}")


@pytest.mark.parametrize("path", ["asset:emoji/stable_diffusion", "nobody/nothing", "/no/such"])
def test_what_is_no_run_has_no_step(path):
    for step in ("best", "3"):
        with pytest.raises(ValueError, match=f"{path} is not .* so it has no step '{step}'"):
            trained.check_trained(*trained.parse_model(f"{path}@{step}", "--model"))


def test_what_scores_are_by_is_what_the_best_is_computed_from(make_config, tmp_path, caplog):
    config = make_config()
    write_run_information(str(tmp_path), config)
    by = trained.scored_by(trained.read_config(str(tmp_path)))
    assert by == trained.scored_by(config) == trained.scored_by(make_config(**{"seed": 9}))
    assert by == trained.scored_by(make_config(**{"evaluation.every": 7}))
    for name, same in (("without", True), ("others", False)):  # Which changes the others' noise.
        more = make_config()
        more.evaluation.sets[name] = more.evaluation.sets.pairs
        assert (trained.scored_by(more) == by) == same
    other = make_config(**{"evaluation.best": {"pairs/size": 2.0}})
    assert (
        by != trained.scored_by(other) != trained.scored_by(make_config(**{"evaluation.seed": 9}))
    )
    for now in (config, other, other):
        with contextlib.closing(trained.open_checkpoints(str(tmp_path), now)) as checkpoints:
            trained.warn_of_other_scores(checkpoints)
            checkpoints.save(len(checkpoints.steps()), {"x": np.ones(3)}, {"best": 1.0})
    assert caplog.text.count("[0] have scores by another config.evaluation") == 2
    assert caplog.text.count("have scores by another") == 2


def test_a_run_of_other_devices_is_opened_here(make_config, tmp_path):
    """Kernels that it was trained with may be lacking here, as cuDNN's is on CPUs."""
    config = make_config(attention="cudnn", convolution="taps")
    write_run_information(str(tmp_path), config)
    with pytest.raises(UserError, match="'cudnn' needs NVIDIA GPUs"):
        load_policy(trained.read_config(str(tmp_path)))
    opening = trained.opening_config(str(tmp_path))
    assert (opening.attention, opening.convolution) == ("auto", "auto")
    assert load_policy(opening).model.image_shape
    assert opening.sampler == config.sampler


@dataclasses.dataclass
class Opened:
    """A policy, of which it is told how it was opened."""

    start: str
    params: dict = dataclasses.field(default_factory=dict)

    def with_denoiser(self, denoiser):
        return denoiser


@pytest.mark.parametrize("rank", [0, 2])
def test_another_configs_factors_are_none_of_a_runs(rank, make_config, tmp_path, monkeypatch):
    """A run of LoRA is of the plain model; any other has all of its denoiser in its checkpoint."""
    write_run_information(str(tmp_path), make_config(**{"lora.rank": rank}))
    monkeypatch.setattr(trained, "load_policy", lambda config, model: Opened(config.lora.start))
    monkeypatch.setattr(trained, "check_trained", lambda *args: None)
    monkeypatch.setattr(trained, "load_denoiser", lambda *args: {})
    config = make_config(**{"lora.start": "/factors.safetensors"})
    base = Opened(config.lora.start)
    assert trained.load_trained(str(tmp_path), config).start == ""
    beside = trained.load_trained(str(tmp_path), config, base=base)
    assert beside.start == ("" if rank else config.lora.start)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("", "has no checkpoint yet"),
        ("7", "There is no checkpoint of step 7"),
        ("best", "None of the checkpoints .* has been evaluated"),
    ],
)
def test_a_step_that_is_not_there_is_told_before_the_model_is_loaded(
    step, message, make_config, tmp_path, monkeypatch
):
    write_run_information(str(tmp_path), make_config(**{"lora.rank": 2}))
    for module, load in ((trained, "load_policy"), (export, "model_shapes")):
        monkeypatch.setattr(module, load, lambda *args: pytest.fail("loaded"))
    config, name = trained.read_config(str(tmp_path)), f"{tmp_path}@{step}" if step else tmp_path
    for load in (
        lambda: trained.load_trained(str(tmp_path), config, step),
        lambda: export.export_pipeline(str(name), tmp_path / "out", "float32"),
        lambda: export.export_lora(str(name), tmp_path / "out", "float32"),
    ):
        with pytest.raises((UserError, FileNotFoundError), match=message):
            load()


def test_what_is_no_model(make_config, tmp_path):
    neither = "is neither the workdir of a run .* nor a diffusers folder"
    with pytest.raises(FileNotFoundError, match=f"{neither}.*hub can't be reached"):
        trained.load_trained("nobody/nothing", make_config())
    with pytest.raises(FileNotFoundError, match=rf"{neither} \(.* no .*unet/\): mend the path"):
        trained.load_trained(str(tmp_path), make_config())
