"""Pictures that the base model draws for the pretraining loss."""

import jax
import numpy as np
import pytest

from diffusionrl_jax.data import latents
from diffusionrl_jax.diffusion.sampler import Sampler
from diffusionrl_jax.experiments import base_pictures, caching, pretraining
from diffusionrl_jax.experiments import experiment as experiments

COUNT, PER_FILE = 24, 8


@pytest.fixture(scope="module", autouse=True)
def small_files():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latents, "PICTURES_PER_FILE", PER_FILE)
        yield


@pytest.fixture(scope="module")
def config(make_config):
    config = make_config(
        **{
            "pretraining.weight": 1.0,
            "pretraining.pictures": f"base:{COUNT}",
            "sampler.guidance_scale": 2.0,
        }
    )
    config.tasks.other = config.tasks.small.copy_and_resolve_references()
    config.tasks.other.prompts = "emoji:portraits"
    return config


@pytest.fixture(scope="module")
def experiment(config, compilation_cache):
    return experiments.build(config)


@pytest.fixture(scope="module")
def drawn(experiment, tmp_path_factory):
    """The cache of a run, and its latents."""
    folder = tmp_path_factory.mktemp("cache")
    return folder, experiment.with_pictures(str(folder)).pictures


def contents(cache):
    (folder,) = cache.iterdir()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_pictures_are_those_that_the_sampler_draws_of_the_tasks_prompts(experiment, drawn):
    policy, arrays = experiment.policy, drawn[1].read(range(COUNT))
    prompts = [experiment.sources[n % 2][n // 2] for n in range(COUNT)]
    assert len(set(prompts)) > COUNT // 2
    np.testing.assert_array_equal(arrays["input_ids"], policy.model.tokenize(prompts))
    assert arrays.keys() == {"latent_mean", "latent_std", "input_ids"}
    assert not arrays["latent_std"].any()
    sampler = Sampler(policy, experiment.config.sampler, batch=COUNT)
    expected = sampler(policy.params, prompts, seed=experiment.config.seed)
    ours = jax.jit(policy.model.decode)(policy.params["vae"], arrays["latent_mean"])
    # Another batch size adds up in another order; pictures differ by a hundred times as much.
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    assert np.abs(expected - expected[0]).max(axis=(1, 2, 3))[1:].min() > 0.1


def test_the_loss_takes_them_as_they_were_drawn(experiment, drawn):
    batch = experiment.with_pictures(str(drawn[0])).batch(1)
    assert batch.pretraining["latent_mean"].shape[0] == experiment.config.batch_size
    rows = np.asarray(batch.pretraining["latent_mean"])
    everything = drawn[1].read(range(COUNT))["latent_mean"]
    assert all((row == everything).all(axis=(1, 2, 3)).sum() == 1 for row in rows)


def test_drawing_goes_on_with_the_files_that_are_missing(experiment, drawn, monkeypatch, tmp_path):
    whole, write, written = contents(drawn[0]), latents.write_whole, []

    def killed(path, data):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, data)

    monkeypatch.setattr(latents, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        experiment.with_pictures(str(tmp_path))
    assert contents(tmp_path).keys() == {written[0]}
    monkeypatch.setattr(
        latents, "write_whole", lambda path, data: (written.append(path.name), write(path, data))
    )
    experiment.with_pictures(str(tmp_path))
    assert sorted(written) == sorted(whole)  # Each once.
    assert contents(tmp_path) == whole


def test_the_command_draws_them_for_many_runs(config, experiment, drawn, tmp_path):
    caching.cache_latents(config, str(tmp_path))
    whole = contents(drawn[0])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole
    with pytest.raises(ValueError, match="has no embeddings: .* Leave out --text_embeddings"):
        caching.cache_latents(config, str(tmp_path), text_embeddings=True)
    named = config.copy_and_resolve_references()
    named.pretraining.pictures = f"latents:{tmp_path}"
    policy = experiment.policy
    arguments = named, policy.model, policy.params, policy.mesh, "", experiment.sources
    assert len(pretraining.load_pictures(*arguments)) == COUNT


def test_everything_that_they_depend_on_is_told_apart(config, experiment):
    policy = experiment.policy

    def fingerprint(params=policy.params, sources=experiment.sources, **changes):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        arguments = changed, policy.model, params, policy.mesh, sources
        return base_pictures.choose_pictures(*arguments).fingerprint

    def other(network):
        return policy.params | {network: jax.tree.map(lambda x: x + 1e-3, policy.params[network])}

    assert fingerprint() == fingerprint(iterations=7)
    others = [
        fingerprint(other("unet")),
        fingerprint(other("text_encoder")),
        fingerprint(sources=experiment.sources[:1]),
        fingerprint(seed=1),
        fingerprint(**{"sampler.steps": 2}),
        fingerprint(**{"sampler.eta": 0.5}),
        fingerprint(**{"sampler.guidance_scale": 1.0}),
        fingerprint(**{"pretraining.pictures": "base:25"}),
    ]
    assert len({fingerprint(), *others}) == 1 + len(others)


def test_without_tasks_there_is_nothing_to_draw(config, tmp_path):
    config = config.copy_and_resolve_references()
    for name in [*config.tasks]:
        del config.tasks[name]
    with pytest.raises(ValueError, match="config.tasks is empty: name at least one"):
        caching.cache_latents(config, str(tmp_path))


@pytest.mark.parametrize("name", ["base:0", "base:x", "base:", "base:-8", "base:7", "base:²"])
def test_too_few_pictures_are_refused_before_anything_is_read(config, name, tmp_path):
    bad = config.copy_and_resolve_references()
    bad.pretraining.pictures, bad.model = name, "/no/such/model"
    for refuse in (experiments.build, lambda config: caching.cache_latents(config, str(tmp_path))):
        with pytest.raises(ValueError, match=f"'{name}' must be base: and .* batch_size=8"):
            refuse(bad)
