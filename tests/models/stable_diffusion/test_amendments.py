"""Folders that PyTorch's pipelines amend as they open them: the same pictures, or refused."""

import inspect
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.schedulers import scheduling_ddim
from etils import epath
from transformers import CLIPTextConfig

from diffusionrl_jax import assets
from diffusionrl_jax.diffusion.guidance import conditions
from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.diffusion.rollout import noise_keys, rollout
from diffusionrl_jax.models import schedulers
from diffusionrl_jax.models.stable_diffusion.amendments import DEFAULTS
from diffusionrl_jax.models.stable_diffusion.build import init_stable_diffusion
from diffusionrl_jax.models.stable_diffusion.configs import read_configs
from diffusionrl_jax.models.stable_diffusion.folder import (
    load_stable_diffusion,
    save_stable_diffusion,
)

EMOJI = "asset:emoji/stable_diffusion"
STEPS, SCALE = 5, 3.0
PROMPTS = ["an apple and a cake", ""]
TOLERANCE = 1e-4  # of pictures in [0, 1]
ABSENT = object()

SCHEDULERS = {
    "unchanged": {},
    "no steps_offset": {"steps_offset": ABSENT},
    "steps_offset null": {"steps_offset": None},
    "steps_offset 0": {"steps_offset": 0},
    "steps_offset 2": {"steps_offset": 2},
    "no clip_sample": {"clip_sample": ABSENT},
    "clip_sample": {"clip_sample": True},
    "no set_alpha_to_one": {"set_alpha_to_one": ABSENT},
    "no timestep_spacing": {"timestep_spacing": ABSENT},
    "no prediction_type": {"prediction_type": ABSENT},
    "trailing": {"timestep_spacing": "trailing", "steps_offset": ABSENT},
    "linspace": {"timestep_spacing": "linspace"},
    "no betas": dict.fromkeys(("beta_start", "beta_end", "beta_schedule"), ABSENT),
    "only the class": dict.fromkeys((*schedulers.DEFAULTS, "_diffusers_version"), ABSENT),
    "velocity": {"prediction_type": "v_prediction"},
    "clean latents": {"prediction_type": "sample"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "betas one by one": {"trained_betas": np.geomspace(1e-4, 2e-2, 1000).tolist()},
    "zero-terminal": {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
    "zero-terminal, clean latents": {
        "prediction_type": "sample",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
    "zero-terminal, linspace": {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "linspace",
        "set_alpha_to_one": True,
    },
}
SCHEDULERS_XL = {
    "unchanged": {"_class_name": "DDIMScheduler"},
    "no steps_offset": {"steps_offset": ABSENT},
    "steps_offset 0": {"steps_offset": 0},
    "steps_offset 2": {"steps_offset": 2},
    "clip_sample": {"clip_sample": True},
    "no clip_sample": {"clip_sample": ABSENT},
    "clip_sample_range": {"clip_sample": True, "clip_sample_range": 0.5},
}


def changed(base, folder, name, changes):
    """A copy of a folder with fields of one of its JSON files changed."""
    shutil.copytree(base, folder)
    file = folder / name
    fields = {**json.loads(file.read_text()), **changes}
    fields = {key: value for key, value in fields.items() if value is not ABSENT}
    file.write_text(json.dumps(fields))
    return folder


SCHEDULER = "scheduler/scheduler_config.json"


class Drawing:
    """A folder's networks, by which folders of other schedulers are drawn."""

    def __init__(self, folder, size=None):
        self.folder = assets.resolve(folder) if folder.startswith("asset:") else folder
        self.model, self.params = load_stable_diffusion(folder, size=size)
        self.ids, self.empty = self.model.tokenize(PROMPTS), self.model.tokenize([""])
        streams = jax.random.split(jax.random.key(0), len(PROMPTS))
        self.keys = noise_keys(streams, STEPS)
        self.run = jax.jit(self._run)

    def noise(self):
        """What each step adds, and x_T at last: float32 [steps + 1, n, ...]."""
        draw = lambda key: jax.random.normal(key, self.model.latent_shape)
        return np.asarray(jax.vmap(jax.vmap(draw))(self.keys)).swapaxes(0, 1).copy()

    def _run(self, params, process, eta):
        encoder = params["text_encoder"]
        prompts = self.model.encode_text(encoder, self.ids)
        text = conditions(prompts, self.model.encode_empty(encoder, self.empty), SCALE)
        kept = jnp.zeros((len(PROMPTS), 0), jnp.int32)
        options = {"eta": eta, "guidance_scale": SCALE}
        latents, _ = rollout(self.model, process, params["unet"], text, self.keys, kept, **options)
        return self.model.decode(params["vae"], latents)

    def ours(self, folder, eta=0.0):
        config = read_configs(epath.Path(folder))["scheduler"]
        # How many steps have noise is of no matter here, and would compile each anew.
        process = make_process(config, STEPS).replace(stochastic_steps=STEPS)
        return np.asarray(self.run(self.params, process, eta))

    def theirs(self, folder, monkeypatch, eta=0.0):
        pipeline = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
        pipeline.set_progress_bar_config(disable=True)
        if not isinstance(pipeline.scheduler, DDIMScheduler):
            pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        *added, first = map(torch.from_numpy, self.noise())
        added = iter(added)
        monkeypatch.setattr(scheduling_ddim, "randn_tensor", lambda *_, **__: next(added))
        options = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "np"}
        options |= dict(zip(("height", "width"), self.model.image_shape, strict=False))
        return pipeline(PROMPTS, latents=first, eta=eta, **options).images


@pytest.fixture(scope="module")
def emoji():
    return Drawing(EMOJI)


@pytest.fixture(scope="module")
def xl(tiny_xl_model):
    return Drawing(tiny_xl_model)


def cases(changes, *quick):
    """Parameters by name; those that are not named are slow."""
    marks = lambda name: () if name in quick else pytest.mark.slow
    return [pytest.param(fields, id=name, marks=marks(name)) for name, fields in changes.items()]


@pytest.mark.parametrize("changes", cases(SCHEDULERS, "only the class"))
def test_pictures_are_those_of_the_pipeline(emoji, changes, tmp_path, monkeypatch):
    folder = changed(emoji.folder, tmp_path / "model", SCHEDULER, changes)
    for eta in (0.0, 1.0):
        theirs = emoji.theirs(folder, monkeypatch, eta)
        assert np.isfinite(theirs).all()
        assert np.abs(emoji.ours(folder, eta) - theirs).max() <= TOLERANCE


@pytest.mark.parametrize("changes", cases(SCHEDULERS_XL))
def test_pictures_are_those_of_the_pipeline_of_xl(xl, changes, tmp_path, monkeypatch):
    folder = changed(xl.folder, tmp_path / "model", SCHEDULER, changes)
    for eta in (0.0, 1.0):
        difference = xl.ours(folder, eta) - xl.theirs(folder, monkeypatch, eta)
        assert np.abs(difference).max() <= TOLERANCE


def of_three_levels(configs):
    """The configs with a VAE that makes pictures 8 times smaller, and a UNet that halves twice."""
    attends = ["CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"]
    unet = {
        "attention_head_dim": 2,
        "block_out_channels": [32, 32, 64],
        "down_block_types": attends,
        "transformer_layers_per_block": 1,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(attends)],
    }
    vae = {
        "block_out_channels": [8] * 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    return configs | {"unet": configs["unet"] | unet, "vae": configs["vae"] | vae}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["configs", "configs_xl"])
def test_pictures_of_any_multiple_of_8_are_those_of_the_pipeline(
    kind, tokenizer, tokenizer_2, request, tmp_path, monkeypatch
):
    """Latents of 9 by 5 are rounded up to 5 by 3 and to 3 by 2 within the UNet."""
    networks = of_three_levels(request.getfixturevalue(kind))
    options = {"tokenizer_2": tokenizer_2} if kind == "configs_xl" else {}
    model, params = init_stable_diffusion(networks, jax.random.key(0), tokenizer, **options)
    save_stable_diffusion(tmp_path / "model", model, params, "float32")
    drawing = Drawing(str(tmp_path / "model"), (72, 40))
    ours, theirs = drawing.ours(drawing.folder), drawing.theirs(drawing.folder, monkeypatch)
    assert ours.shape == (len(PROMPTS), 72, 40, 3)
    assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.mark.parametrize(("size", "use"), [((30, 32), 32), ((32, 0), 4), ((1, 32), 4)])
def test_a_size_of_no_whole_latents_is_refused(size, use):
    with pytest.raises(ValueError, match=f"must be a multiple of 4, .*: use {use}"):
        load_stable_diffusion(EMOJI, size=size)


@pytest.mark.slow
@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_other_solvers_have_the_chain_of_the_same_noise(emoji, name, tmp_path, monkeypatch):
    folder = changed(emoji.folder, tmp_path / "model", SCHEDULER, {"_class_name": name})
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", name]}))
    assert np.abs(emoji.ours(folder) - emoji.theirs(folder, monkeypatch)).max() <= TOLERANCE


def test_left_out_fields_of_networks_have_the_class_s_own_defaults():
    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    for name, kind in classes.items():
        parameters = inspect.signature(kind.__init__).parameters
        for field, value in DEFAULTS[name].items():
            expected = parameters[field].default
            # JSON has no tuples.
            expected = list(expected) if isinstance(expected, tuple) else expected
            assert value == expected, (name, field)
    text = CLIPTextConfig()
    for field, value in DEFAULTS["text_encoder"].items():
        assert value == getattr(text, field), field


@pytest.mark.parametrize("name", ["unet", "vae"])
def test_left_out_and_null_fields_of_networks(emoji, name, tmp_path):
    """The shipped networks have some of the defaults."""
    config = read_configs(emoji.folder)[name]
    defaults = [field for field, value in DEFAULTS[name].items() if config[field] == value]
    assert len(defaults) >= 3
    for number, value in enumerate((ABSENT, None)):
        changes = dict.fromkeys(defaults, value)
        folder = changed(emoji.folder, tmp_path / str(number), f"{name}/config.json", changes)
        assert read_configs(epath.Path(folder))[name] == config


@pytest.mark.parametrize("saved", ["0.8.0", "0.9.0.dev0", "0.9.0", "0.39.0"])
def test_sample_size_of_before_it_was_saved(emoji, saved, tmp_path):
    changes = {"_diffusers_version": saved}
    folder = changed(emoji.folder, tmp_path / "model", "unet/config.json", changes)
    theirs = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    model, _ = load_stable_diffusion(folder)
    assert model.latent_shape[1] == theirs.unet.config.sample_size
    assert (model.latent_shape[1] == 64) == (saved == "0.8.0")


@pytest.mark.slow
def test_an_export_says_what_was_used(emoji, tmp_path, monkeypatch):
    changes = SCHEDULERS["zero-terminal"] | {"steps_offset": 0, "clip_sample": ABSENT}
    folder = changed(emoji.folder, tmp_path / "model", SCHEDULER, changes)
    model, params = load_stable_diffusion(folder)
    save_stable_diffusion(tmp_path / "export", model, params, "float32")
    written = json.loads((tmp_path / "export" / SCHEDULER).read_text())
    used = {"steps_offset": 1, "clip_sample": False, "rescale_betas_zero_snr": True}
    assert written.items() >= used.items()
    theirs = emoji.theirs(tmp_path / "export", monkeypatch)
    assert np.abs(emoji.ours(folder) - theirs).max() <= TOLERANCE


def test_a_model_that_says_nothing_of_its_noise_is_warned_of(emoji, tmp_path, caplog):
    load_stable_diffusion(changed(emoji.folder, tmp_path / "no", SCHEDULER, SCHEDULERS["no betas"]))
    assert "scheduler_config.json names no beta_start, beta_end or beta_schedule" in caplog.text
    caplog.clear()
    load_stable_diffusion(EMOJI)
    assert not caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        {"_class_name": "EDMEulerScheduler"},
        {"_class_name": "MyScheduler"},
        {"_class_name": ["my", "Scheduler"]},
    ],
)
@pytest.mark.parametrize("file", [SCHEDULER, "model_index.json"])
def test_other_noise_is_refused_by_its_class(emoji, change, file, tmp_path):
    if file == "model_index.json":
        change = {"scheduler": ["diffusers", change["_class_name"]]}
    folder = changed(emoji.folder, tmp_path / "model", file, change)
    with pytest.raises(ValueError, match=f"{file}: the scheduler .* is not supported"):
        load_stable_diffusion(folder)
