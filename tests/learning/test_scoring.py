"""Rewards of whole groups, scored in microbatches, against each group scored by itself."""

import dataclasses

import jax
import numpy as np
import pytest

from diffusionrl_jax.distributed.mesh import batch_sharding, replicated
from diffusionrl_jax.learning.iteration import Samples
from diffusionrl_jax.rewards import REWARDS
from diffusionrl_jax.rewards.weighted_sum import WeightedSum

GROUP, BATCH = 4, 32
PROMPTS = [text for text in ("a fox", "a cake", "a cat", "a dog") * 2 for _ in range(GROUP)]


@pytest.fixture
def scored(make_original):
    """(reward, parameters): parity by what each picture does for its group, and CLIP's score."""
    options = {"statistical_parity": {"credit": "leave_one_out"}, "clip_score": {}}
    loaded = {
        name: REWARDS[name].load(str(make_original(name)[1]), group_size=GROUP, **fields)
        for name, fields in options.items()
    }
    rewards = {name: reward for name, (reward, _) in loaded.items()}
    both = WeightedSum(rewards, {"statistical_parity": 1.0, "clip_score": 10.0})
    return both, {name: params for name, (_, params) in loaded.items()}


def test_microbatches_keep_groups_together(build, scored):
    reward, params = scored
    rng = np.random.default_rng(0)
    images = rng.random((BATCH, 32, 32, 3)) * rng.random((BATCH, 1, 1, 3))
    images = images.astype(np.float32)
    inputs = reward.prepare(PROMPTS)
    # With random weights all pictures would be of one class.
    parity, head = reward.rewards["statistical_parity"], params["statistical_parity"]
    middle = np.mean(jax.jit(parity.logits)(head, images), axis=0)
    head["classifier"]["bias"] = head["classifier"]["bias"] - middle
    group = lambda tree, n: jax.tree.map(lambda rows: rows[n * GROUP : (n + 1) * GROUP], tree)
    jitted = jax.jit(reward.parts)
    groups = [jitted(params, *group((images, inputs), n)) for n in range(BATCH // GROUP)]
    parts = {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}
    # Both tell the pictures of a group apart, and one group from another.
    for values in parts.values():
        by_group = values.reshape(-1, GROUP)
        assert np.ptp(by_group, axis=1).max() > 1e-3 and np.ptp(by_group, axis=0).max() > 1e-3
    expected = parts["statistical_parity"] + 10 * parts["clip_score"]
    setup = build(tasks=1, devices=2, batch_size=BATCH)
    mesh = setup.algorithm.mesh
    placed = jax.device_put((images, inputs), batch_sharding(mesh))
    for microbatch in (0, 2 * GROUP):
        numbers = dataclasses.replace(setup.algorithm.hyperparameters, score_microbatch=microbatch)
        algorithm = dataclasses.replace(setup.algorithm, rewards=(reward,), hyperparameters=numbers)
        score = jax.jit(lambda *arguments, algorithm=algorithm: algorithm.score_task(0, *arguments))
        scores = score(jax.device_put(params, replicated(mesh)), *placed)
        np.testing.assert_allclose(scores, expected, atol=1e-5)


@dataclasses.dataclass(frozen=True)
class Pixels:
    """One value of each image, which no sum rounds, plus an input for each prompt."""

    def __call__(self, params, images, inputs):
        return images[:, 1, 2, 0] + inputs["offset"]


def test_images_are_decoded_where_they_are_scored(build):
    """They are those that are kept, to the bit; two are scored, one is decoded at a time."""
    setup = build(tasks=2, devices=2, batch_size=8)
    numbers = dataclasses.replace(
        setup.algorithm.hyperparameters, decode_microbatch=1, score_microbatch=2
    )
    algorithm = dataclasses.replace(
        setup.algorithm, hyperparameters=numbers, rewards=(Pixels(),) * 2
    )
    rng, shape = np.random.default_rng(0), algorithm.model.latent_shape
    sharding = batch_sharding(algorithm.mesh, axis=1)
    latents = jax.device_put(rng.standard_normal((2, 8, *shape)).astype(np.float32), sharding)
    decode = jax.jit(algorithm.decode, out_shardings=batch_sharding(algorithm.mesh))
    images = jax.numpy.stack([decode(setup.frozen, latents[task]) for task in range(2)])
    images = jax.device_put(images, sharding)
    score = jax.jit(algorithm.score)
    expected, scores = (
        np.asarray(score(setup.frozen, samples, setup.batch.reward_inputs))
        for samples in (Samples((), images, ()), Samples((), None, (), latents))
    )
    assert algorithm.decodes_to_score(8) and not setup.algorithm.decodes_to_score(8)
    assert len(np.unique(expected)) == expected.size
    np.testing.assert_array_equal(scores, expected)


def test_no_image_is_held(build):
    """The largest value of the program that scores is less than two microbatches' images."""
    setup = build(tasks=1, devices=2, batch_size=32)
    numbers = dataclasses.replace(
        setup.algorithm.hyperparameters, decode_microbatch=1, score_microbatch=1
    )
    algorithm = dataclasses.replace(setup.algorithm, hyperparameters=numbers)
    arguments = setup.params, setup.frozen, setup.batch.input_ids, 0
    samples = jax.eval_shape(algorithm.sample, *arguments)
    image = 4 * np.prod(algorithm.model.image_shape)
    jaxpr = jax.make_jaxpr(algorithm.score)(setup.frozen, samples, setup.batch.reward_inputs)
    largest = max(np.prod(value.shape) for value in values_of(jaxpr.jaxpr))
    assert image // 4 * 2 <= largest < image // 4 * 32


def values_of(jaxpr):
    """Every value that a program names whose last axis is colours, in its loops too."""
    for equation in jaxpr.eqns:
        yield from (
            variable.aval
            for variable in equation.outvars
            if getattr(variable.aval, "shape", ()) and variable.aval.shape[-1] == 3
        )
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from values_of(inner)
