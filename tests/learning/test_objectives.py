"""What is trained on: steps that were taken, each at most once, on the devices that took them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusionrl_jax.diffusion.rollout import Steps
from diffusionrl_jax.distributed.mesh import batch_sharding
from diffusionrl_jax.learning import draws
from diffusionrl_jax.learning.iteration import Samples
from diffusionrl_jax.models.text_encoders import text_to_arrays

TASKS, BATCH, STEPS, COUNT = 2, 8, 5, 3


def prepare(setup, program, rewards, step=0):
    """What `prepare` makes of latents that say where they are: 1000 task + 10 sample + step."""
    passes = setup.passes
    _, position = jax.device_get(setup.algorithm.experience.trained_steps(step, BATCH))
    task, sample, _ = np.indices(position.shape)
    code = (1000 * task + 10 * sample + position).astype(np.float32)
    as_latents = lambda code: np.broadcast_to(code[..., None, None, None], (*code.shape, 4, 4, 4))
    samples = Samples(
        steps=Steps(latents=as_latents(code), following=as_latents(code + 1), log_probs=-code),
        images=np.zeros((TASKS, BATCH, 4, 4, 3), np.float32),
        text=np.zeros((TASKS, BATCH, passes, 4, 16), np.float32),
    )
    samples = jax.device_put(samples, batch_sharding(setup.algorithm.mesh, axis=1))
    made = program(setup.params, setup.frozen, samples, rewards, setup.batch, step, {})
    return made.examples, made.text


@pytest.fixture(scope="module")
def setup(build):
    return build(batch_size=BATCH, steps=STEPS, timesteps_per_iteration=COUNT, text_dropout=0.5)


@pytest.fixture(scope="module")
def rewards():
    return np.random.default_rng(0).standard_normal((TASKS, BATCH)).astype(np.float32)


@pytest.fixture(scope="module")
def program(setup):
    return jax.jit(setup.algorithm.prepare)


@pytest.fixture(scope="module")
def prepared(setup, program, rewards):
    return prepare(setup, program, rewards)


def test_policy_updates_are_steps_that_were_taken(setup, rewards, prepared):
    updates, _ = prepared
    count = TASKS * COUNT
    assert updates.latents.shape == (count + 1, BATCH, 4, 4, 4)
    code = np.asarray(updates.latents)[:count, :, 0, 0, 0].astype(int)
    np.testing.assert_array_equal(code // 1000, np.repeat([[0], [1]], COUNT, axis=0) + 0 * code)
    np.testing.assert_array_equal(code % 1000 // 10, np.arange(BATCH) + 0 * code)
    np.testing.assert_array_equal(updates.own["target"][:count], updates.latents[:count] + 1)
    np.testing.assert_array_equal(updates.own["step_index"][:count], code % 10)
    np.testing.assert_array_equal(updates.own["old_log_prob"][:count], -code)
    timesteps = np.asarray(setup.algorithm.experience.process.times)[code % 10]
    np.testing.assert_array_equal(updates.times[:count], timesteps)
    normalised = (rewards - rewards.mean(1, keepdims=True)) / rewards.std(1, keepdims=True)
    np.testing.assert_allclose(
        updates.own["advantages"][:count], np.repeat(normalised, COUNT, axis=0), atol=1e-5
    )
    np.testing.assert_array_equal(updates.text, [0, 0, 0, 1, 1, 1, 2])
    np.testing.assert_array_equal(updates.weight, [1, 1, 1, 0.5, 0.5, 0.5, 0.5])
    np.testing.assert_array_equal(updates.objective, [0] * count + [1])


def test_timesteps_are_drawn_without_replacement_for_each_sample(setup, program, rewards, prepared):
    drawn = []
    for step in range(4):
        updates = prepared[0] if step == 0 else prepare(setup, program, rewards, step)[0]
        chosen = np.asarray(updates.own["step_index"])[:-1].reshape(TASKS, COUNT, BATCH)
        drawn.append(chosen.swapaxes(1, 2).reshape(-1, COUNT))
    drawn = np.concatenate(drawn)
    assert all(len(set(draw)) == COUNT for draw in drawn)
    assert len({tuple(draw) for draw in drawn}) > 20
    # 64 draws of 3 of 5: each is expected 38 times, with a standard deviation of 4.
    assert np.abs(np.bincount(drawn.ravel(), minlength=STEPS) - 38.4).max() < 16


def test_what_a_group_with_shared_noise_differs_in_is_what_it_is_trained_on(setup):
    setup = setup.changed(numbers={"timesteps_per_iteration": 1}, noise_groups=(4, 1))
    algorithm = setup.algorithm
    ids = np.repeat(np.asarray(setup.batch.input_ids)[:, ::4], 4, axis=1)
    ids = jax.device_put(ids, batch_sharding(algorithm.mesh, axis=1))

    @jax.jit
    def run(params, frozen, ids):
        samples = algorithm.experience.sample(params, frozen, ids, 0)
        advantages = jnp.ones((TASKS, BATCH))
        made = algorithm.prepare(params, frozen, samples, advantages, setup.batch, 0, {})
        return samples.steps, made.examples.own["step_index"]

    steps, chosen = jax.device_get(run(setup.params, setup.frozen, ids))
    # Noise of the same samples, were none of it shared: only the trained step's is their own.
    sources = np.asarray(draws.noise_sources(*algorithm.experience.trained_steps(0, BATCH), STEPS))
    for first in (0, 4):
        step, group = chosen[0, first], slice(first, first + 4)
        latents, following = steps.latents[0, group, 0], steps.following[0, group, 0]
        np.testing.assert_array_equal(chosen[0, group], step)
        np.testing.assert_array_equal(latents, np.stack([latents[0]] * 4))
        assert len(np.unique(following[:, 0, 0, 0])) == 4
        expected = np.full((4, STEPS + 1), first)
        expected[:, step] += np.arange(4)
        np.testing.assert_array_equal(sources[0, group], expected)
    assert len(np.unique(steps.latents[1, :, 0, 0, 0, 0])) == BATCH
    assert len(np.unique(chosen[1])) > 1


def test_a_last_step_without_noise_is_never_chosen(build, rewards):
    setup = build(
        batch_size=BATCH,
        steps=STEPS,
        timesteps_per_iteration=STEPS - 1,
        scheduler={"set_alpha_to_one": True},
        pretraining_weight=0.0,
    )
    updates, text = prepare(setup, jax.jit(setup.algorithm.prepare), rewards)
    assert updates.own["step_index"].max() == STEPS - 2
    assert updates.latents.shape[0] == TASKS * (STEPS - 1)
    assert text.shape[0] == TASKS


def test_updates_stay_on_the_devices_that_sampled_them(setup, prepared):
    updates, text = prepared
    expected = batch_sharding(setup.algorithm.mesh, axis=1)
    for leaf in (updates.latents, updates.own["target"], updates.own["old_log_prob"], text):
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"guidance_scale": 1.0}, {}, {"xl": True}], ids=str)
def test_embeddings_of_the_texts_give_the_same_loss(build, changes):
    setup = build(batch_size=BATCH, steps=2, timesteps_per_iteration=0, **changes)
    algorithm, batch = setup.algorithm, setup.batch

    @jax.jit
    def embed(frozen, ids):
        return text_to_arrays(algorithm.experience.model.encode_text(frozen.text_encoder, ids))

    @jax.jit
    def pretraining_loss(params, frozen, samples, batch):
        rewards = jnp.zeros((TASKS, BATCH))
        made = algorithm.prepare(params, frozen, samples, rewards, batch, 0, {})
        update = jax.tree.map(lambda leaf: leaf[-1], made.examples)
        text = jax.tree.map(lambda rows: rows[update.text], made.text)
        return algorithm.loss(params, frozen.base, update, text)[1]["loss"], text

    shapes = jax.eval_shape(
        algorithm.experience.sample, setup.params, setup.frozen, batch.input_ids, 0
    )
    samples = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    kept = embed(setup.frozen, batch.pretraining["input_ids"])
    # Ids of other texts: where there are embeddings, these are what counts.
    other = {"input_ids": batch.pretraining["input_ids"][::-1]}
    cached = batch.replace(pretraining=batch.pretraining | other | kept)
    mistaken = batch.replace(pretraining=batch.pretraining | other)
    (loss, text), (loss_cached, text_cached), (loss_other, _) = (
        pretraining_loss(setup.params, setup.frozen, samples, each)
        for each in (batch, cached, mistaken)
    )
    np.testing.assert_allclose(loss_cached, loss, rtol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), text_cached, text)
    assert abs(loss_other / loss - 1) > 1e-5
