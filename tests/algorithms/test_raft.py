"""RAFT is a setting of the reward weighted loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusionrl_jax.algorithms import ALGORITHMS
from diffusionrl_jax.algorithms.pretraining import Pretraining
from tests.algorithms import toy


def test_the_best_of_each_prompt_is_learned_from_alone():
    made = toy.make("raft", **{"algorithm.raft.noises": 3})
    (objective,) = made.algorithm.objectives
    rewards = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    rewards[[3, 8, 9, 10, 11]] = np.nan  # One of the first group, and all of the third.
    latents = jnp.arange(16.0)[:, None]
    learned, weights = objective.learned_from(latents, jnp.asarray(rewards), 4)
    ranked = np.where(np.isnan(rewards), -np.inf, rewards).reshape(4, 4)
    expected = ranked.argmax(1) + np.arange(0, 16, 4)
    np.testing.assert_array_equal(np.reshape(learned, (4, 4)), np.repeat(expected[:, None], 4, 1))
    np.testing.assert_array_equal(np.reshape(weights, (4, 4)), [[1] * 4, [1] * 4, [0] * 4, [1] * 4])
    assert objective.noises == 3 and made.frozen.base is None


@pytest.mark.parametrize("method", ["raft", "reward_weighted"])
def test_refuses_single_images(method):
    made = toy.make(method)
    made.config.algorithm.reward_weighted.weighting = "best"
    made.config.tasks.task0.group_size = 1
    with pytest.raises(ValueError, match="takes the best .* group_size of task task0 to 2"):
        ALGORITHMS[method].check(made.config)


def test_equal_weights_are_the_pretraining_loss(hasty):
    """Value and gradient to the bit, of both texts, where all rewards are the same."""
    changes = {"sampler.guidance_scale": 2.0, "pretraining.text_dropout": 0.3}
    made = toy.make("reward_weighted", **changes)
    algorithm, params = made.algorithm, made.state.params
    samples = jax.jit(algorithm.phases().sample)(params, made.frozen, made.batch.input_ids, 0)
    arguments = params, made.frozen, samples.trained_on(), jnp.full((1, 16), 0.7), made.batch, 0, {}
    prepared = jax.jit(algorithm.phases().prepare)(*arguments)
    example, text = (
        jax.tree.map(lambda leaf: leaf[0], tree) for tree in (prepared.examples, prepared.text)
    )
    (weighted,) = algorithm.objectives
    plain = Pretraining(weighted.process, weighted.seed, 2.0, 1.0, 0.3)
    found = []
    for objective in (weighted, plain):
        loss = dataclasses.replace(algorithm, objectives=(objective,)).loss
        of_params = jax.value_and_grad(
            lambda params, loss=loss: loss(params, None, example, text)[0]
        )
        found.append(jax.device_get(jax.jit(of_params)(params)))
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert np.abs(found[0][1]["level"]) > 1e-3
