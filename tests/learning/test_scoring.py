"""Rewards of whole groups in microbatches, and images that are decoded where they are scored."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusionrl_jax.distributed.mesh import batch_sharding, replicated
from diffusionrl_jax.learning.advantages import reward_metrics
from diffusionrl_jax.learning.iteration import Samples
from diffusionrl_jax.learning.summary import check_finite
from diffusionrl_jax.rewards import REWARDS
from diffusionrl_jax.rewards.weighted_sum import WeightedSum
from tests.rewards.test_scoring import Lonely

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
        changed = setup.changed(numbers={"score_microbatch": microbatch}, rewards=(reward,))
        score = jax.jit(functools.partial(changed.algorithm.experience.scoring.score_task, 0))
        scores = score(jax.device_put(params, replicated(mesh)), *placed)
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_a_decoder_that_gives_nan_stops_the_run(build):
    setup = build(tasks=1, devices=2)
    algorithm = setup.changed(rewards=(Lonely(),)).algorithm
    scoring = algorithm.experience.scoring
    bias = setup.frozen.vae["decoder"]["conv_out"]["bias"]
    conv_out = setup.frozen.vae["decoder"]["conv_out"] | {"bias": bias.at[0].set(jnp.nan)}
    decoder = setup.frozen.vae["decoder"] | {"conv_out": conv_out}
    frozen = setup.frozen.replace(vae=setup.frozen.vae | {"decoder": decoder}, rewards=({},))
    latents = jnp.ones((8, *scoring.model.latent_shape))
    images = jax.jit(scoring.decode)(frozen, latents)
    held = scoring.score_task(0, {}, images, {})
    streamed = jax.jit(scoring.score_latents, static_argnums=0)(0, {}, frozen.vae, latents, {})
    for scores in (held, streamed):
        advantages, _ = algorithm.rules(scores[None], setup.batch, {})
        metrics = reward_metrics(advantages)
        np.testing.assert_array_equal(metrics["invalid_rewards"], [8])
        with pytest.raises(FloatingPointError, match="All 8 rewards of task 'size' are NaN"):
            check_finite({}, metrics, ["size"], 8)


@dataclasses.dataclass(frozen=True)
class Pixels:
    """One value of each image, which no sum rounds, plus an input for each prompt."""

    def __call__(self, params, images, inputs):
        return images[:, 1, 2, 0] + inputs["offset"]


def test_images_are_decoded_where_they_are_scored(build):
    """They are those that are kept, to the bit; two are scored, one is decoded at a time."""
    setup = build(tasks=2, devices=2, batch_size=8)
    numbers = {"decode_microbatch": 1, "score_microbatch": 2}
    scoring = setup.changed(numbers=numbers, rewards=(Pixels(),) * 2).algorithm.experience.scoring
    rng, shape = np.random.default_rng(0), scoring.model.latent_shape
    sharding = batch_sharding(scoring.mesh, axis=1)
    latents = jax.device_put(rng.standard_normal((2, 8, *shape)).astype(np.float32), sharding)
    decode = jax.jit(scoring.decode, out_shardings=batch_sharding(scoring.mesh))
    images = jax.numpy.stack([decode(setup.frozen, latents[task]) for task in range(2)])
    images = jax.device_put(images, sharding)
    score = jax.jit(scoring.score)
    expected, scores = (
        np.asarray(score(setup.frozen, samples, setup.batch.reward_inputs))
        for samples in (Samples((), images, ()), Samples((), None, (), latents))
    )
    assert scoring.decodes_to_score(8)
    assert not setup.algorithm.experience.scoring.decodes_to_score(8)
    assert len(np.unique(expected)) == expected.size
    np.testing.assert_array_equal(scores, expected)


def test_no_image_is_held(build):
    """The largest value of the program that scores is less than two microbatches' images."""
    setup = build(tasks=1, devices=2, batch_size=32)
    numbers = {"decode_microbatch": 1, "score_microbatch": 1}
    experience = setup.changed(numbers=numbers).algorithm.experience
    arguments = setup.params, setup.frozen, setup.batch.input_ids, 0
    samples = jax.eval_shape(experience.sample, *arguments)
    image = 4 * np.prod(experience.model.image_shape)
    score = jax.make_jaxpr(experience.scoring.score)
    jaxpr = score(setup.frozen, samples, setup.batch.reward_inputs)
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
