"""Every test runs on the CPU with eight virtual devices, so that sharding is exercised."""

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    ).strip()

TINY_NETWORKS = {
    "unet": {
        "block_out_channels": [32],
        "cross_attention_dim": 16,
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "sample_size": 16,
        "attention_head_dim": 2,
    },
    "vae": {
        "block_out_channels": [8, 8],
        "norm_num_groups": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    },
    "text_encoder": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "scheduler": {},
}


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory):
    """Indices of prompts are kept for the session, by programs that tests start too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFUSIONRL_JAX_CACHE", str(tmp_path_factory.mktemp("data_cache")))
        yield


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory):
    """Compiled programs are kept for the session; the environment for a program to share them."""
    import jax

    folder = str(tmp_path_factory.mktemp("compiled"))
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
    yield {name.upper(): str(value) for name, value in settings.items()}
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="session")
def tiny_networks():
    """The configs of `tiny_model`."""
    from diffusionrl_jax.assets import emoji_model

    configs = emoji_model.configs(emoji_model.train_tokenizer(), scaling_factor=0.5)
    return {name: fields | TINY_NETWORKS[name] for name, fields in configs.items()}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tiny_networks):
    """A diffusers folder of the emoji world's layout with tiny random networks; pictures 32x32."""
    import jax

    from diffusionrl_jax.assets import emoji_model
    from diffusionrl_jax.models.stable_diffusion import (
        init_stable_diffusion,
        save_stable_diffusion,
    )

    tokenizer = emoji_model.train_tokenizer()
    model, params = init_stable_diffusion(tiny_networks, jax.random.key(0), tokenizer)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_stable_diffusion(folder, model, params)
    return str(folder)


@pytest.fixture(scope="session")
def make_config(tiny_model):
    """A function that makes the config of a run of seconds, with changes by dotted name."""
    from configs import common

    def make(**changes):
        config = common.get_config()
        config.model = tiny_model
        config.iterations = 3
        config.sampler.steps = 3
        config.sampler.guidance_scale = 1.0
        config.batch_size = 8
        config.timesteps_per_iteration = 1
        config.optimizer.learning_rate = 1e-3
        config.ema_decay = 0.5
        config.pretraining.weight = 0.0
        size = common.make_scorer("jpeg_size")
        config.tasks.small = common.make_task(size, "emoji:pairs")
        config.checkpoint.every = 1
        config.evaluation.every = 2
        config.evaluation.scorers.size = size
        config.evaluation.head_to_head = ("size",)
        config.evaluation.sets.pairs = common.make_evaluation_set("emoji:pairs", 8, ("size",))
        config.evaluation.sets.people = common.make_evaluation_set(
            "emoji:portraits", 16, ("size",), group_size=4
        )
        config.evaluation.best["pairs/size"] = 1.0
        config.update_from_flattened_dict(changes)
        return config

    return make


@pytest.fixture(scope="session")
def config_file(tmp_path_factory):
    """A function that writes a config as a file for `--config`."""
    folder = tmp_path_factory.mktemp("configs")

    def write(config):
        path = folder / f"config_{len(list(folder.iterdir()))}.py"
        fields = json.dumps(config.to_dict())
        path.write_text(
            "import json\n\nimport ml_collections\n\n\n"
            f"def get_config():\n    return ml_collections.ConfigDict(json.loads({fields!r}))\n"
        )
        return str(path)

    return write


@pytest.fixture
def parity(monkeypatch):
    """benchmarks/reward_parity.py, which compares rewards with their PyTorch originals."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import reward_parity

    return reward_parity


@pytest.fixture
def make_original(parity, tmp_path):
    """A function that makes a tiny PyTorch reward model, and its folder."""

    def make(name):
        originals = parity.originals
        folder = tmp_path / name
        original = originals.make(name, folder, originals.tiny(name))
        original.write(folder)
        return original, folder

    return make
