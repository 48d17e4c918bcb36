"""What is exported, opened by PyTorch's diffusers and by the importer."""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionXLPipeline
from etils import epath

from diffusionrl_jax import main
from diffusionrl_jax.diffusion.rollout import noise_keys
from diffusionrl_jax.diffusion.sampler import Sampler
from diffusionrl_jax.experiments.loading import load_policy
from diffusionrl_jax.models.folders.weights import read_safetensors
from diffusionrl_jax.models.lora import FILE_NAME
from diffusionrl_jax.models.stable_diffusion.folder import load_stable_diffusion
from diffusionrl_jax.runs import export, trained
from tests.data.test_files import full_disk

PROMPTS = ["an apple next to a cake", "a portrait of a judge"]
SEED, STEPS = 5, 4
EMOJI = "asset:emoji/stable_diffusion"


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def train(make_config, compilation_cache, tmp_path_factory):
    """A function that trains for two iterations, with changes of the config: the workdir."""

    def run(**changes):
        workdir = str(tmp_path_factory.mktemp("run"))
        config = make_config(iterations=2, **changes)
        config.evaluation.sets, config.evaluation.best = {}, {}
        main.train(config, workdir)
        return workdir

    return run


@pytest.fixture(scope="module")
def run(train):
    return train(**{"optimizer.learning_rate": 1e-2})


@pytest.fixture(scope="module")
def velocity_model(tiny_model, tmp_path_factory):
    """The tiny model as one that predicts the velocity, as Stable Diffusion 2.1 does."""
    folder = tmp_path_factory.mktemp("models") / "velocity"
    shutil.copytree(tiny_model, folder)
    file = folder / "scheduler" / "scheduler_config.json"
    fields = json.loads(file.read_text()) | {"prediction_type": "v_prediction"}
    file.write_text(json.dumps(fields))
    return str(folder)


@pytest.fixture(scope="module")
def lora_run(train, velocity_model):
    # An alpha other than the rank, which a LoRA file takes for granted. Of the velocity, so that
    # the runs of both kinds of training are those of both predictions too.
    rates = {"lora.rank": 2, "lora.alpha": 8.0, "optimizer.learning_rate": 1e-1}
    return train(**{"model": velocity_model, **rates})


@pytest.fixture(scope="module")
def xl_run(train, tiny_xl_model):
    return train(**{"model": tiny_xl_model, "optimizer.learning_rate": 1e-2})


@pytest.fixture(scope="module")
def xl_lora_run(train, tiny_xl_model):
    rates = {"lora.rank": 2, "lora.alpha": 8.0, "optimizer.learning_rate": 1e-1}
    return train(**{"model": tiny_xl_model, **rates})


def base_of(workdir):
    """The folder that a run began with."""
    return trained.opening_config(workdir).model


def sampled(workdir, guidance_scale=3.0):
    """What `sample.py` draws with eta 0, and the latents that it starts from."""
    config = trained.opening_config(workdir)
    config.sampler.steps, config.sampler.eta = STEPS, 0.0
    config.sampler.guidance_scale = guidance_scale
    policy = trained.load_trained(workdir, config)
    images = Sampler(policy, config.sampler, batch=len(PROMPTS))(policy.params, PROMPTS, SEED)
    keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(SEED), index))(np.arange(2))
    draw = lambda key: jax.random.normal(key, policy.model.latent_shape)
    return images, np.array(jax.vmap(draw)(noise_keys(keys, STEPS)[:, STEPS]))


def drawn_by_pytorch(pipeline, latents, guidance_scale=3.0):
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    return pipeline(
        PROMPTS,
        latents=torch.from_numpy(latents),
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        eta=0.0,
        output_type="np",
    ).images


def assert_same_pictures(ours, pipeline, base, latents):
    """Alike but for float32's rounding through a few steps, and not what the base draws."""
    theirs = drawn_by_pytorch(pipeline, latents)
    before = drawn_by_pytorch(DiffusionPipeline.from_pretrained(base), latents)
    assert np.abs(ours - theirs).mean() < 1e-4
    assert np.abs(ours - before).mean() > 5e-3


def exported(checkpoint, folder, function=export.export_pipeline, dtype="float32"):
    function(checkpoint, export.prepare_output(str(folder)), dtype)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("which", ["run", "lora_run", "xl_run", "xl_lora_run"])
def test_pytorch_draws_the_same_pictures(which, request, tmp_path):
    workdir = request.getfixturevalue(which)
    ours, latents = sampled(workdir)
    folder = exported(workdir, tmp_path / "whole")
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert isinstance(pipeline, StableDiffusionXLPipeline) == which.startswith("xl")
    prediction = "v_prediction" if which == "lora_run" else "epsilon"
    assert pipeline.scheduler.config.prediction_type == prediction
    assert_same_pictures(ours, pipeline, base_of(workdir), latents)


@pytest.mark.parametrize("which", [slow("lora_run"), slow("xl_lora_run")])
def test_pytorch_draws_the_same_pictures_with_a_lora_file(which, request, tmp_path):
    workdir = request.getfixturevalue(which)
    ours, latents = sampled(workdir)
    exported(workdir, tmp_path, export.export_lora)
    pipeline = DiffusionPipeline.from_pretrained(base_of(workdir))
    pipeline.load_lora_weights(tmp_path, weight_name=FILE_NAME)
    assert_same_pictures(ours, pipeline, base_of(workdir), latents)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"lora.rank": 4, "optimizer.learning_rate": 3e-2}], ids=["all", "lora"]
)
def test_the_emoji_world_goes_to_pytorch(train, changes, tmp_path):
    workdir = train(**{"model": EMOJI, "optimizer.learning_rate": 1e-3, **changes})
    ours, latents = sampled(workdir)
    base, folder = exported(EMOJI, tmp_path / "base"), exported(workdir, tmp_path / "whole")
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert_same_pictures(ours, pipeline, base, latents)
    if changes:
        exported(workdir, tmp_path / "lora", export.export_lora)
        pipeline = DiffusionPipeline.from_pretrained(base)
        pipeline.load_lora_weights(tmp_path / "lora", weight_name=FILE_NAME)
        assert_same_pictures(ours, pipeline, base, latents)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "dtype"),
    [("run", "float32"), ("run", "bfloat16"), ("run", "float16"), ("xl_run", "float32")],
)
def test_import_is_what_evaluation_draws_with(which, dtype, request, tmp_path):
    run = request.getfixturevalue(which)
    folder = exported(f"{run}@2", tmp_path, dtype=dtype)
    model, imported = load_stable_diffusion(folder)
    policy = load_policy(trained.opening_config(run))
    expected = policy.with_denoiser(trained.load_denoiser(run, policy))
    torch_type = getattr(torch, dtype)
    cast = lambda leaf: torch.tensor(np.asarray(leaf)).to(torch_type).float().numpy()
    jax.tree.map(np.testing.assert_array_equal, imported, jax.tree.map(cast, dict(expected)))
    assert model.same_networks(policy.model)


@pytest.mark.slow
def test_lora_file_has_nothing_but_the_average_factors(lora_run, velocity_model, tmp_path):
    weights = [*pathlib.Path(velocity_model).rglob("*.safetensors")]
    for file in weights:  # None is read.
        file.rename(file.with_suffix(".away"))
    exported(lora_run, tmp_path, export.export_lora, dtype="float16")
    for file in weights:
        file.with_suffix(".away").rename(file)
    assert os.listdir(tmp_path) == [FILE_NAME]
    state = read_safetensors(tmp_path / FILE_NAME, upcast=False)
    assert {tensor.dtype for tensor in state.values()} == {np.dtype(np.float16)}
    policy = load_policy(trained.opening_config(lora_run))
    factors = trained.load_params(lora_run, policy)
    assert sum(map(np.size, state.values())) == sum(map(np.size, jax.tree.leaves(factors)))
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    down, up = (state[f"unet.{name}.lora_{kind}.weight"].astype(np.float32) for kind in "AB")
    kernel = lambda params: np.asarray(
        params["mid_block"]["attentions_0"]["transformer_blocks_0"]["attn2"]["to_k"]["kernel"]
    )
    moved = kernel(trained.load_denoiser(lora_run, policy)) - kernel(policy.denoiser)
    np.testing.assert_allclose((up @ down).T, moved, atol=2e-3 * np.abs(moved).max())


@pytest.mark.slow
def test_lora_needs_a_run_that_trained_it(run, tiny_model, tmp_path):
    with pytest.raises(ValueError, match="has trained all of the denoiser"):
        export.export_lora(run, tmp_path, "float32")
    with pytest.raises(ValueError, match="is not the workdir of a run: leave out --lora"):
        export.export_lora(tiny_model, tmp_path, "float32")


def test_output_is_looked_at_first(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match="is not empty: .*--overwrite"):
        export.prepare_output(str(tmp_path))
    assert export.prepare_output(str(tmp_path), overwrite=True)
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(ValueError, match="--output=.* cannot be written to .*folder that you can"):
        export.prepare_output(str(tmp_path / "file" / "folder"))
    assert export.prepare_output(str(tmp_path / "new" / "folder")).is_dir()


def test_what_would_be_read_in_place_of_an_export_is_removed(tmp_path):
    output, stem = epath.Path(tmp_path), "diffusion_pytorch_model"
    for name in ("unet", "other"):
        (output / name).mkdir()
        (output / name / f"{stem}.safetensors.index.json").write_text("{}")
    with export._whole_folder(output) as folder:
        (folder / "unet").mkdir()
        (folder / "unet" / f"{stem}.safetensors").write_bytes(b"new")
    assert [path.name for path in (output / "unet").iterdir()] == [f"{stem}.safetensors"]
    assert list((output / "other").iterdir())


def test_an_export_over_what_a_bucket_holds(bucket, tiny_model, tmp_path):
    output = epath.Path("gs://bucket/exported")
    stale = output / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    stale.write_text("{}")
    export.export_pipeline(
        tiny_model, export.prepare_output(str(output), overwrite=True), "float32"
    )
    export.export_pipeline(tiny_model, epath.Path(tmp_path), "float32")
    here = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert {name.removeprefix(f"{output}/") for name in bucket} == here
    for name in here:
        assert (output / name).read_bytes() == (tmp_path / name).read_bytes()


def test_factors_that_are_written_beside_a_pipeline_leave_it_one(tmp_path):
    (tmp_path / export.INDEX).write_text("{}")
    with export._whole_folder(epath.Path(tmp_path)) as folder:
        (folder / FILE_NAME).write_bytes(b"new")
    assert (tmp_path / export.INDEX).exists() and (tmp_path / FILE_NAME).exists()


def test_a_full_disk_leaves_no_half_of_an_export(tiny_model, tmp_path):
    output = export.prepare_output(str(tmp_path / "[1] out"))
    message = "Cannot write .*out .*: what is there stays; make room, and the same command goes on"
    largest = max(file.stat().st_size for file in pathlib.Path(tiny_model).rglob("*.safetensors"))
    with full_disk(largest - 1), pytest.raises(OSError, match=message):
        export.export_pipeline(tiny_model, output, "float32")
    assert os.listdir(output) == []
    partial = output / f"{'0a' * 16}.partial"  # Of one that was killed.
    (partial / "unet").mkdir(parents=True)
    output = export.prepare_output(str(output))
    export.export_pipeline(tiny_model, output, "float32")
    assert sorted(os.listdir(output)) == sorted(
        {*os.listdir(tiny_model), "model_index.json"} - {"feature_extractor"}
    )
    kept = (output / "unet" / "config.json").read_bytes()
    with full_disk(largest - 1), pytest.raises(OSError, match=message):
        export.export_pipeline(tiny_model, output, "float32")
    assert (output / "unet" / "config.json").read_bytes() == kept
    assert (output / "model_index.json").exists()


def test_paths_are_expanded_or_refused(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert export.prepare_output("~/out") == tmp_path / "out"
    for path, message in (("", "--output is empty"), ("file:///x", "--output=.*without file://")):
        with pytest.raises(ValueError, match=message):
            export.prepare_output(path)
    with pytest.raises(ValueError, match="--checkpoint=https://a/b@best: https:// is not known"):
        export.export_pipeline("https://a/b@best@2", tmp_path, "float32")
