"""Every test runs on the CPU with eight virtual devices, so that sharding is exercised."""

import functools
import json
import os
import shutil
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

# In the manner of XL: a second text encoder, pooled text and sizes beside the timestep, two
# transformer blocks in one attention.
TINY_XL = {
    "unet": TINY_NETWORKS["unet"]
    | {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "cross_attention_dim": 16 + 24,
        "projection_class_embeddings_input_dim": 6 * 8 + 12,
        "transformer_layers_per_block": [2],
        "use_linear_projection": True,
    },
    "text_encoder_2": TINY_NETWORKS["text_encoder"]
    | {"hidden_size": 24, "hidden_act": "gelu", "projection_dim": 12, "num_hidden_layers": 2},
}


def pytest_configure(config):
    """Programs that run for a moment are not worth optimising; slow tests' run for minutes."""
    if config.option.markexpr == "not slow":
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def pytest_collection_modifyitems(items):
    """Whole programs first: their files take longest, and one must not be left for the end."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory):
    """Indices of prompts are kept for the session, by programs that tests start too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFUSIONRL_JAX_CACHE", str(tmp_path_factory.mktemp("data_cache")))
        yield


def session_folder(tmp_path_factory):
    """The folder of a session, which all of its processes have in common."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def made_once(tmp_path_factory, name, make):
    """A folder that the processes of a session share; the first to ask has it made."""
    from filelock import FileLock

    folder = session_folder(tmp_path_factory) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            made = tmp_path_factory.mktemp(name)
            make(made)
            made.rename(folder)
    return folder


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory):
    """Compiled programs are kept for the session; the environment for a program to share them.

    Processes that share the tests of a session share them, too.
    """
    import jax

    folder = str(session_folder(tmp_path_factory) / "compiled")
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
    yield {name.upper(): str(value) for name, value in settings.items()}
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture
def hasty():
    """What a slow test runs for a moment alone is not optimised either."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def tiny_networks():
    """The configs of `tiny_model`."""
    from diffusionrl_jax.emoji_world import emoji_model

    return tiny_configs(emoji_model.train_tokenizer())


def tiny_configs(tokenizer):
    """The emoji world's networks with the changes of `TINY_NETWORKS`."""
    from diffusionrl_jax.emoji_world import emoji_model

    configs = emoji_model.configs(tokenizer, scaling_factor=0.5)
    return {name: fields | TINY_NETWORKS[name] for name, fields in configs.items()}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A diffusers folder of the emoji world's layout with tiny random networks; pictures 32x32."""
    return str(made_once(tmp_path_factory, "tiny", write_tiny_model))


@pytest.fixture(scope="session")
def tiny_xl_model(tmp_path_factory):
    """The same in the manner of Stable Diffusion XL."""
    write = functools.partial(write_tiny_model, xl=True)
    return str(made_once(tmp_path_factory, "tiny_xl", write))


def write_tiny_model(folder, xl=False):
    """Writes a folder of `TINY_NETWORKS`, or with those of `TINY_XL`."""
    import copy

    import jax

    from diffusionrl_jax.emoji_world import emoji_model
    from diffusionrl_jax.models.stable_diffusion.build import init_stable_diffusion
    from diffusionrl_jax.models.stable_diffusion.folder import save_stable_diffusion

    tokenizer, options = emoji_model.train_tokenizer(), {}
    networks = tiny_configs(tokenizer)
    if xl:
        networks |= {
            "unet": networks["unet"] | TINY_XL["unet"],
            "text_encoder_2": networks["text_encoder"] | TINY_XL["text_encoder_2"],
            "pipeline": {"force_zeros_for_empty_prompt": True},
        }
        # Padded with another token than the first one, as the published one is.
        options["tokenizer_2"] = copy.deepcopy(tokenizer)
        options["tokenizer_2"].pad_token = "a"
    model, params = init_stable_diffusion(networks, jax.random.key(0), tokenizer, **options)
    save_stable_diffusion(folder, model, params)


@pytest.fixture(scope="session")
def make_config(tiny_model):
    """A function that makes the config of a run of seconds, with changes by dotted name."""
    from configs import common

    def make(**changes):
        config = common.get_config()
        config.model = tiny_model
        # It compiles sooner, which is most of such a run.
        config.convolution = "xla"
        config.iterations = 3
        config.sampler.steps = 3
        config.sampler.guidance_scale = 1.0
        config.batch_size = 8
        config.algorithm.policy_gradient.timesteps_per_iteration = 1
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


@pytest.fixture(scope="module")
def start(compilation_cache):
    """A function that starts a program on two devices, as on a small laptop."""
    from tests.processes import launcher

    with launcher(compilation_cache, devices=2) as run:
        yield lambda program, *arguments: run("-m", f"diffusionrl_jax.{program}", *arguments)


@pytest.fixture(scope="session")
def finished(make_config, compilation_cache, tmp_path_factory):
    """The workdir of an uninterrupted run of three iterations."""
    from diffusionrl_jax import main

    train = lambda folder: main.train(make_config(), str(folder))
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    return shutil.copytree(made_once(tmp_path_factory, "finished", train), workdir)


@pytest.fixture
def bucket(monkeypatch):
    """fsspec's own file system in memory takes the cloud's place."""
    import fsspec
    from etils.epath import backend

    memory = fsspec.filesystem("memory")
    memory.store.clear()
    choose = lambda self, name: memory
    monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", choose)
    return memory.store


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


@pytest.fixture
def hps_v2(make_original, tmp_path):
    """HPS_v2.1_compressed.pt: float16 tensors under `state_dict`; and the flags to convert it."""
    import collections

    import torch

    original, folder = make_original("hps_v2")
    state = {name: value.half() for name, value in original.state().items()}
    source = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": collections.OrderedDict(state)}, source)
    return folder, {
        "reward": "hps_v2",
        "source": str(source),
        "output": str(tmp_path / "converted"),
        "tokenizer": str(folder),
        "config": str(folder / "config.json"),
    }
