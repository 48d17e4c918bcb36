import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from diffusionrl_jax.data.emoji import pictures
from diffusionrl_jax.data.latents import LatentDataset, fingerprint
from diffusionrl_jax.data.pictures import MappedPictures
from diffusionrl_jax.experiments import caching, pretraining
from diffusionrl_jax.experiments.loading import load_policy


@pytest.fixture(scope="module")
def cached(make_config, dataset_name, compilation_cache, tmp_path_factory):
    """The config, the latents of the command, and the policy that they are for."""
    folder = tmp_path_factory.mktemp("latents")
    changes = {"pretraining.weight": 1.0, "pretraining.pictures": dataset_name}
    config = make_config(**changes)
    caching.cache_latents(config, str(folder))
    config.pretraining.pictures = f"latents:{folder}"
    return config, folder, load_policy(config)


def load(config, policy, cache_dir, **changes):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return pretraining.load_pictures(
        config, policy.model, policy.params, policy.mesh, str(cache_dir), ()
    )


def changed(policy, network):
    params = {network: jax.tree.map(lambda leaf: leaf + 1e-3, policy.params[network])}
    return dataclasses.replace(policy, params=dict(policy.params) | params)


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


def test_a_damaged_cache_of_a_run_is_made_anew(cached, dataset_name, tmp_path, caplog):
    config, folder, policy = cached
    changes = {"pretraining.pictures": dataset_name}
    load(config, policy, tmp_path, **changes)
    (made,) = tmp_path.iterdir()
    for path in made.iterdir():
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 8]) + content[middle + 1 :])
    caplog.clear()
    dataset = load(config, policy, tmp_path, **changes)
    assert "1 files in" in caplog.text
    for path in made.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()
    (path,) = made.glob("*.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-20000] + bytes(20000))
    with pytest.raises(ValueError, match="start the same command again, which makes it anew"):
        dataset.read(range(20))


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
    with pytest.raises(ValueError, match="encoded by another VAE or tokenizer.*cache_latents"):
        load(config, changed(policy, "vae"), tmp_path)
    with pytest.raises(FileNotFoundError, match="no complete latents"):
        load(config, policy, tmp_path, **{"pretraining.pictures": f"latents:{tmp_path}"})
    assert load(config, policy, tmp_path, **{"pretraining.weight": 0.0}) is None
    # Without embeddings the text encoder does not matter.
    assert load(config, changed(policy, "text_encoder"), tmp_path)


def test_all_that_latents_depend_on_tells_them_apart(cached):
    """And what is usual is not named, so that latents of earlier versions are still found."""
    _, _, policy = cached
    model, vae = policy.model, policy.params["vae"]
    config = {**model.configs["vae"], "shift_factor": 0.5}
    shifted = dataclasses.replace(model, configs={**model.configs, "vae": config})
    rounded = dataclasses.replace(model, vae=model.vae.clone(dtype=jnp.bfloat16))
    key = lambda model: pretraining.model_fingerprint(model, vae, policy.mesh)
    assert len({key(model), key(shifted), key(rounded)}) == 3
    ids = model.tokenize(["", "A portrait of an accountant, 8 apples & umbrellas: déjà vu!"])
    names = str(model.scaling_factor), json.dumps(ids.tolist()), str(model.image_shape)
    assert key(model) == fingerprint(vae, *names)


def test_captions_that_are_cut_are_counted(cached, tmp_path, caplog):
    _, _, policy = cached
    image = np.zeros(policy.model.image_shape, np.uint8)
    texts = ["a cat", "a cat " * 30, "a dog " * 30, ""]
    items = [{"image": image, "prompt": text.encode()} for text in texts]
    caplog.set_level("WARNING", logger="absl")
    for count, kept in ((2, items), (0, items[:1])):
        caplog.clear()
        source = MappedPictures(kept, f"{count}", *image.shape[:2])
        arguments = policy.model, policy.params["vae"], policy.mesh, tmp_path / str(count), "model"
        pretraining.encode_pictures(source, *arguments)
        expected = [f"{count} captions are longer than what the model reads, and are cut."]
        assert [record.getMessage() for record in caplog.records] == expected * bool(count)


def test_text_encoders_are_recognised_where_they_lie(cached, monkeypatch):
    """Whatever mesh they are split over, and without being brought together on any device."""
    monkeypatch.delattr(pretraining, "replicated")
    _, _, policy = cached
    kernel = np.random.default_rng(0).normal(size=(2048, 1024)).astype(np.float32)
    split = NamedSharding(policy.mesh, PartitionSpec(None, policy.mesh.axis_names))
    placed, whole = (
        pretraining.text_fingerprint(policy.model, {"kernel": array})
        for array in (jax.device_put(kernel, split), kernel)
    )
    assert placed == whole
    kernel[7, 8] += 1e-3
    assert pretraining.text_fingerprint(policy.model, {"kernel": kernel}) != whole
