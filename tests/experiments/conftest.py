"""An experiment of two tasks, and a data set of pictures, for the tests of their parts."""

import pytest

from diffusionrl_jax.data.emoji import world
from diffusionrl_jax.experiments import experiment as experiments
from tests import hub as stand_in


@pytest.fixture(scope="session")
def experiment(make_config, compilation_cache, tmp_path_factory):
    """Two tasks and the pretraining loss on a few pictures."""
    config = make_config(**{"pretraining.weight": 1.0, "pretraining.pictures": "emoji"})
    config.tasks.people = config.tasks.small.copy_and_resolve_references()
    config.tasks.people.prompts, config.tasks.people.group_size = "emoji:portraits", 4
    config.sampler.guidance_scale = 3.0
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "SPLITS", {"train": 12})
        built = experiments.build(config).with_pictures(str(cache))
    assert len(list(cache.glob("latents-*/index.json"))) == 1
    return built


@pytest.fixture(scope="session")
def dataset_name(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "SPLITS", {"train": 20})
        world.load("train", str(folder))
    return f"tfds:emoji_world?text=prompt&data_dir={folder}"


@pytest.fixture(scope="session")
def published(tiny_model, tmp_path_factory):
    """Repository -> folder; copies are changed."""
    return stand_in.make_repositories(tmp_path_factory.mktemp("published"), tiny_model)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "home" / "hub"


@pytest.fixture
def hub(published, cache, monkeypatch):
    """The hub, as this process' one, with an empty cache."""
    with stand_in.serve(published) as server:
        stand_in.use(monkeypatch, server.address, cache)
        yield server
    monkeypatch.undo()
    stand_in.huggingface_hub.utils.reset_sessions()
