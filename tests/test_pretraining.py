import jax
import numpy as np
import pytest

from diffusionrl_jax import caching, pretraining
from diffusionrl_jax import experiment as experiments
from diffusionrl_jax.data.emoji import pictures, world
from diffusionrl_jax.data.latents import LatentDataset


@pytest.fixture(scope="module")
def dataset_name(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "SPLITS", {"train": 20})
        world.load("train", str(folder))
    return f"tfds:emoji_world?text=prompt&data_dir={folder}"


@pytest.fixture(scope="module")
def cached(make_config, dataset_name, compilation_cache, tmp_path_factory):
    """The config, the latents of the command, and the policy that they are for."""
    folder = tmp_path_factory.mktemp("latents")
    changes = {"pretraining.weight": 1.0, "pretraining.pictures": dataset_name}
    config = make_config(**changes)
    caching.cache_latents(config, str(folder))
    config.pretraining.pictures = f"latents:{folder}"
    return config, folder, experiments.load_policy(config)


def load(config, policy, cache_dir, **changes):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return pretraining.load_pictures(
        config, policy.model, policy.params["vae"], policy.mesh, str(cache_dir)
    )


def test_cached_latents_are_the_encoders(cached, tmp_path):
    config, _, policy = cached
    arrays = load(config, policy, tmp_path).read(range(20))
    assert not list(tmp_path.iterdir())
    drawn = [pictures.random_example(np.random.default_rng((0, n))) for n in range(20)]
    by_text = {tuple(policy.model.tokenize([example.prompt])[0]): example for example in drawn}
    image = by_text[tuple(arrays["input_ids"][19])].image.astype(np.float32) / 255
    mean, std = jax.jit(policy.model.encode)(policy.params["vae"], image[None])
    # Convolutions of another batch size add up in another order.
    np.testing.assert_allclose(arrays["latent_mean"][19], mean[0], atol=1e-4)
    np.testing.assert_allclose(arrays["latent_std"][19], std[0], atol=1e-4)


def test_training_encodes_what_is_not_cached(cached, dataset_name, tmp_path):
    config, folder, policy = cached
    dataset = load(config, policy, tmp_path, **{"pretraining.pictures": dataset_name})
    (made,) = tmp_path.iterdir()
    for path in made.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert len(dataset) == 20


def test_every_device_holds_its_rows(cached):
    _, folder, policy = cached
    dataset = LatentDataset(folder)
    batch = pretraining.pretraining_batch(dataset, 3, 16, 5, policy.mesh)
    for name, values in dataset.batch(3, 16, 5).items():
        assert len(batch[name].addressable_shards) == 8
        assert batch[name].addressable_shards[0].data.shape[0] == 2
        np.testing.assert_array_equal(batch[name], values)


def test_latents_of_another_model_are_refused(cached, tmp_path):
    config, _, policy = cached
    vae = jax.tree.map(lambda leaf: leaf + 1e-3, policy.params["vae"])
    with pytest.raises(ValueError, match="encoded by another VAE or tokenizer.*cache_latents"):
        pretraining.load_pictures(config, policy.model, vae, policy.mesh, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no complete latents"):
        load(config, policy, tmp_path, **{"pretraining.pictures": f"latents:{tmp_path}"})
    with pytest.raises(ValueError, match="pictures is empty: name some"):
        load(config, policy, tmp_path, **{"pretraining.pictures": ""})
    assert load(config, policy, tmp_path, **{"pretraining.weight": 0.0}) is None


def test_the_command_takes_pictures_alone(cached, tmp_path):
    config, _, _ = cached
    with pytest.raises(ValueError, match="names no pictures to encode"):
        caching.cache_latents(config, str(tmp_path))
