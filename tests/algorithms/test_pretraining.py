"""The pretraining loss's pictures and captions, against diffusers' noising and SciPy's tests."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import torch
from diffusers import DDIMScheduler

from diffusionrl_jax.algorithms.pretraining import Pretraining, drop_text
from diffusionrl_jax.diffusion.ddim import make_ddim
from diffusionrl_jax.models.folders.published import NOISE_SCHEDULE
from tests.algorithms import toy

SHAPE = 4, 2, 2
COUNT = 600
# Below this the p-value of a right sample is in one of 1000 seeds.
CHANCE = 1e-3


@functools.cache
def program(guidance_scale, prediction_type):
    process = make_ddim(NOISE_SCHEDULE | {"prediction_type": prediction_type}, 10)
    return jax.jit(Pretraining(process, 0, guidance_scale, 0.25, text_dropout=0.3).noised)


def noised(guidance_scale, std, prediction_type="epsilon"):
    """(the pictures' mean latents, the examples of one update, which captions are dropped)."""
    mean = np.random.default_rng(0).standard_normal((COUNT, *SHAPE)).astype(np.float32)
    pictures = {"latent_mean": mean, "latent_std": np.full_like(mean, std)}
    keys = jax.random.split(jax.random.key(1), COUNT)
    return mean, *jax.device_get(program(guidance_scale, prediction_type)(pictures, keys))


def parts(examples):
    """The noised latents, the targets and the times of the one update, as tensors."""
    own = examples.latents, examples.own["target"], examples.times
    assert all(len(array) == 1 for array in own)
    return (torch.from_numpy(np.array(array[0])) for array in own)


def test_noised_pictures_and_targets_are_those_of_diffusers(hasty):
    """Of pictures whose encoding is certain; the target is then the noise, or the velocity."""
    scheduler = DDIMScheduler(**NOISE_SCHEDULE)
    mean, examples, _ = noised(1.0, std=0.0)
    latents, noise, times = parts(examples)
    expected = scheduler.add_noise(torch.from_numpy(mean), noise, times)
    np.testing.assert_allclose(latents, expected, atol=1e-5)
    np.testing.assert_array_equal(examples.weight, [0.25])
    mean, examples, _ = noised(1.0, std=0.0, prediction_type="v_prediction")
    latents, target, times = parts(examples)
    # The same keys, so that it is the same noise.
    expected = scheduler.get_velocity(torch.from_numpy(mean), noise, times)
    np.testing.assert_allclose(target, expected, atol=1e-5)
    assert scipy.stats.kstest(noise.numpy().ravel(), "norm").pvalue > CHANCE
    uniform = scipy.stats.uniform(0, 1000)
    assert scipy.stats.kstest(times.numpy() + 0.5, uniform.cdf).pvalue > CHANCE


def test_the_encodings_own_noise_is_drawn_beside(hasty):
    """What the picture's deviation adds to its mean is normal, and not the noise of the chain."""
    mean, examples, _ = noised(1.0, std=2.0)
    latents, noise, times = parts(examples)
    alpha = DDIMScheduler(**NOISE_SCHEDULE).alphas_cumprod[times][:, None, None, None]
    clean = (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()
    encoding = ((clean - torch.from_numpy(mean)) / 2).numpy()[times.numpy() < 600]
    noise = noise.numpy()[times.numpy() < 600]  # Elsewhere rounding is magnified.
    assert scipy.stats.kstest(encoding.ravel(), "norm").pvalue > CHANCE
    assert scipy.stats.pearsonr(encoding.ravel(), noise.ravel()).pvalue > CHANCE


def test_captions_are_dropped_only_where_the_empty_prompt_is_not_seen_anyway(hasty):
    """Guided, the loss is its expectation over the dropout."""
    drawn, guided = (noised(scale, 0.0)[2] for scale in (1.0, 3.0))
    assert scipy.stats.binomtest(int(drawn.sum()), COUNT, 0.3).pvalue > CHANCE
    assert not guided.any()


def test_the_empty_prompts_text_takes_the_place_of_what_is_dropped(hasty):
    text = {"states": jnp.arange(12.0).reshape(3, 2, 2), "pooled": jnp.arange(3.0)[:, None]}
    empty = jax.tree.map(lambda array: -jnp.ones_like(array[:1]), text)
    found = drop_text(text, empty, jnp.array([False, True, False]))
    for name, own in text.items():
        np.testing.assert_array_equal(found[name][jnp.array([0, 2])], own[jnp.array([0, 2])])
        np.testing.assert_array_equal(found[name][1], empty[name][0])


def examples_of(guidance_scale, microbatch=0):
    """The captions' tokens, and the text that the denoiser sees of each, of 16 pictures."""
    made = toy.make("policy_gradient", **{"sampler.guidance_scale": guidance_scale})
    rng = np.random.default_rng(2)
    pictures = {
        "latent_mean": rng.standard_normal((16, *toy.Toy.latent_shape)).astype(np.float32),
        "latent_std": np.zeros((16, *toy.Toy.latent_shape), np.float32),
        "input_ids": rng.integers(1, 9, (16, 1)).astype(np.int32),
    }
    algorithm = made.algorithm
    objective = Pretraining(algorithm.experience.process, 3, guidance_scale, 1.0, 0.5, microbatch)
    alone = dataclasses.replace(algorithm, objectives=(objective,))
    shapes = jax.eval_shape(
        algorithm.experience.sample, made.state.params, made.frozen, made.batch.input_ids, 0
    )
    samples = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    batch = made.batch.replace(pretraining=pictures)
    arguments = made.state.params, made.frozen, samples, np.zeros((1, 16), np.float32)
    prepared = jax.jit(alone.prepare)(*arguments, batch, 0, {})
    text = np.asarray(prepared.text)[np.asarray(prepared.examples.text)]
    return pictures["input_ids"][:, 0], text[0]


def test_guided_it_sees_the_caption_and_the_empty_prompt(hasty):
    """The toy's text is a tenth of the token; the empty prompt's token is 0."""
    ids, text = examples_of(3.0, microbatch=4)
    np.testing.assert_allclose(text, np.stack([ids / 10, np.zeros(16)], axis=1), rtol=1e-6)


def test_unguided_it_sees_one_of_the_two(hasty):
    ids, text = examples_of(1.0)
    kept, dropped = np.isclose(text[:, 0], ids / 10), text[:, 0] == 0
    assert text.shape == (16, 1) and (kept ^ dropped).all()
    assert kept.any() and dropped.any()  # Half of them, as text_dropout says.


def test_its_loss_and_norm_are_logged_under_its_name():
    objective = Pretraining(make_ddim(NOISE_SCHEDULE, 10), 0, 1.0, 1.0, 0.0)
    values = {"loss": np.array([0.5]), "gradient_norm": np.array([2.0]), "ratio": np.zeros(1)}
    expected = {"pretraining/loss": 0.5, "pretraining/gradient_norm": 2.0}
    assert objective.summary(values, ("task0",)) == expected and objective.metrics == {}
